"""Regions that end in a linear recurrence: found, put as ops, with the model's own numbers and gradients at every length."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.verify import distance

WIDTH = 6


class Recurrent(nn.Module):
    """Three layers and a parameter; `body` says what is computed of them."""

    def __init__(self, body):
        super().__init__()
        self.gate, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.rate, self.body = nn.Parameter(torch.rand(WIDTH)), body

    def forward(self, x):
        return self.body(self, x)


def leaky(m, x):
    f = torch.sigmoid(m.gate(x))
    return gatec.linear_recurrence(f, (1 - f) * m.value(x)) * F.silu(m.out(x))


def learned_average(m, x):
    a = torch.sigmoid(m.rate)
    return gatec.linear_recurrence(a, (1 - a) * m.value(x))


def from_a_state_backwards(m, x):
    a = torch.exp(-F.softplus(m.rate) * torch.sigmoid(m.gate(x)))
    return gatec.linear_recurrence(a, torch.sqrt(1 - a * a) * m.value(x), m.out(x[:, 0]), reverse=True)


def time_last(m, x):
    z = torch.sigmoid(m.gate(x) + m.rate)
    return gatec.linear_recurrence((1 - z).transpose(1, 2), (z * m.value(x)).transpose(1, 2), dim=2)


def loop(m, x):
    z, new = torch.sigmoid(m.gate(x)), torch.tanh(m.value(x))
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = (1 - z[:, t]) * h + z[:, t] * new[:, t]
        out.append(h)
    return torch.stack(out, 1)


def loop_in_place(m, x):
    reset = x[..., :1] > 2
    log = -8.0 * torch.sigmoid(m.gate(x)) * F.softplus(m.rate)
    a = torch.exp(log) * ~reset
    b = torch.where(reset, 1.0, torch.sqrt(1 - torch.exp(2 * log))) * m.value(x)
    h, y = torch.zeros_like(b[:, 0]), torch.zeros_like(b)
    for t in range(x.shape[1]):
        h = a[:, t] * h + b[:, t]
        y[:, t] = h
    return y


BODIES = [leaky, learned_average, from_a_state_backwards, time_last, loop, loop_in_place]


def pair(body):
    torch.manual_seed(0)
    model = Recurrent(body).double()
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    rolled = gatec.reroll(model, x) if "loop" in body.__name__ else model
    return model, gatec.fuse(rolled, x, everywhere=True)


def step(model, x, grad):
    x = x.clone().requires_grad_()
    out = model(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *model.parameters()], grad(out), allow_unused=True)]


def scans(model):
    return [k for k in gatec.kernels_of(model).values() if k.name.startswith("recurrence_")]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_the_gates_are_part_of_the_scan(body):
    model, fused = pair(body)
    (kernel,) = scans(fused)
    assert "tl.sigmoid(" in kernel.source.partition("_reduce(")[2].partition("@triton")[0]
    for shape in ((2, 9, WIDTH), (3, 14, WIDTH), (1, 7, WIDTH)):
        x = torch.randn(shape, dtype=torch.float64)
        for mine, theirs in zip(step(fused, x, torch.cos), step(model, x, torch.cos), strict=True):
            assert (mine is None) == (theirs is None) and (mine is None or distance(mine, theirs) < 1e-12)
    ops = [str(n.target) for m in fused.modules() for u in [gatec.capture.unit_of(m)] if u for c in u.graphs.values()
           for g in c for n in g.graph.nodes]  # fmt: skip
    assert any(t.startswith("gatec.recurrence_") for t in ops)


def test_what_asks_for_the_size_of_a_gate_does_not_keep_it_out():
    """The loop's buffers are as large as what enters: no pointwise work is left beside the op."""
    _, fused = pair(loop_in_place)
    (kernel,) = scans(fused)
    reads = kernel.source.partition("def forward(")[2].partition(")")[0]
    assert len(reads.split(",")) == 5  # two layers, the parameter, the reset, the first state


def test_a_value_that_somebody_else_reads_stays_outside():
    def shared(m, x):
        f = torch.sigmoid(m.gate(x))
        return gatec.linear_recurrence(f, (1 - f) * m.value(x)) + f

    model, fused = pair(shared)
    (kernel,) = scans(fused)
    assert "tl.sigmoid" not in kernel.source
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    assert distance(fused(x), model(x)) < 1e-12


def test_a_recurrence_without_gates_stays_an_operator():
    def plain(m, x):
        return gatec.linear_recurrence(torch.rand(9, 1, dtype=x.dtype), m.value(x))

    assert not scans(pair(plain)[1])


def test_a_parameter_of_the_gate_is_summed_inside_each_chunk():
    _, fused = pair(from_a_state_backwards)
    (kernel,) = scans(fused)
    assert "room_for_sums(" in kernel.source.partition("def pulled")[2]
    _, fused = pair(leaky)
    assert "room_for_sums(" not in scans(fused)[0].source


def test_a_scan_is_priced_as_three_launches_that_read_everything_twice():
    _, fused = pair(learned_average)
    ((_, price),) = gatec.report(fused).regions
    state, row = 2 * 9 * WIDTH * 8, WIDTH * 8
    assert (price.kernels, price.after) == (3, state + 2 * (state + row))


def test_a_rolled_loop_runs_along_time_where_it_lies():
    """No states are copied because steps came first: the op's operands are in the layers' own order."""
    _, fused = pair(loop)
    (kernel,) = scans(fused)
    assert "dim=1, reverse=False)" in kernel.source.partition("def forward(")[2]
