"""Gates with views, sums and einsum around them are regions, and fused they are the same function with the same gradients."""

import copy

import pytest
import torch
from covers import GATES, Gated, Jump, Uneven
from torch import nn

import gatec

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_in_a_kernel_and_computes_the_same(name):
    torch.manual_seed(0)
    model = Gated(GATES[name])
    fused = gatec.fuse(model, X, everywhere=True)
    assert len(gatec.kernels_of(fused)) == len(gatec.scan(model, X).gates) == 1
    exact, fused = copy.deepcopy(model).double(), fused.double()
    for shape in [(2, 5, 8), (3, 7, 8)]:
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for mine, theirs in zip(_results(fused, x), _results(exact, x), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def _results(model, x):
    out = model(x)
    return [
        out,
        *torch.autograd.grad(out.square().sum(), [x, *model.parameters()], materialize_grads=True, allow_unused=True),
    ]


def test_a_backward_that_a_kernel_cannot_follow_is_refused():
    torch.manual_seed(0)
    for function, kernels in [(Jump, 1), (Uneven, 0)]:
        model = Gated(lambda m, x, own=function: x * own.apply(torch.sigmoid(m.a(x)), 0.5 + 0.1 * m.scale))
        fused = gatec.fuse(model, X, everywhere=True)
        assert len(gatec.kernels_of(fused)) == kernels
        assert kernels or "works element by element" in str(gatec.report(fused))


def test_a_backward_of_its_own_joins_a_recurrence():
    def leaky(m, x):
        new = Jump.apply(torch.tanh(m.b(x)), 0.5 + 0.1 * m.scale)
        return gatec.linear_recurrence(torch.sigmoid(m.a(x)), new)

    torch.manual_seed(0)
    model = Gated(leaky).double()
    fused = gatec.fuse(model, X.double(), everywhere=True)
    assert len(gatec.kernels_of(fused)) == 1
    x = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    for mine, theirs in zip(_results(fused, x), _results(model, x), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


class Token(nn.Module):
    """Everything that another call may have in other sizes than the first."""

    def __init__(self):
        super().__init__()
        self.token, self.gate, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        token = torch.sigmoid(self.place(self.token)).expand(x.shape[0], -1, -1) * (1 + self.token)
        rows = (torch.sigmoid(self.gate(x)) * self.token)[:, :-1]
        scores = torch.sigmoid(self.gate(x)[..., :1])
        return torch.cat([token, rows * x[:, :-1]], 1), (scores * x).sum(1)


@pytest.mark.parametrize("batch", [1, 2])
def test_other_sizes_than_those_of_the_example(batch):
    model = Token()
    fused = gatec.fuse(model, torch.randn(batch, 6, 8), everywhere=True)
    for shape in [(1, 6, 8), (3, 6, 8), (3, 9, 8), (2, 2, 8), (1, 1, 8)]:
        x = torch.randn(shape)
        for mine, theirs in zip(fused(x), model(x), strict=True):
            assert mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6), shape
