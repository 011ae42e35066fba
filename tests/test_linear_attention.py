"""The operator gatec::linear_attention: published layers as its instances, against the loop over time, with every gradient."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.linear_attention import gated_delta_rule, linear_attention
from gatec.linear_attention.chunks import CHUNK

HEADS, KEYS, VALUES = (2, 3), 5, 4
STEPS = [1, 2, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 5]


def loop(q, k, v, decay=None, erase=None, write=None, state=None):
    """As a person writes it."""
    steps = v.shape[-2]
    s = q.new_zeros(*v.shape[:-2], k.shape[-1], v.shape[-1]) if state is None else state
    found = []
    for t in range(steps):
        s = s if decay is None else decay[..., t, :].unsqueeze(-1) * s
        seen = 0 if erase is None else torch.einsum("...k,...kv->...v", erase[..., t, :], s)
        s = s + torch.einsum("...k,...v->...kv", k[..., t, :], v[..., t, :])
        s = s if erase is None else s - torch.einsum("...k,...v->...kv", write[..., t, :], seen)
        found.append(torch.einsum("...k,...kv->...v", q[..., t, :], s))
    return torch.stack(found, -2), s


def randn(*shape):
    return torch.randn(*HEADS, *shape, dtype=torch.float64)


def gla(steps):
    """A decay for every key: logsigmoid / 16."""
    return [randn(steps, KEYS), randn(steps, KEYS), randn(steps, VALUES), (F.logsigmoid(randn(steps, KEYS)) / 16).exp()]


def retnet(steps):
    """A number for every head."""
    decay = (1 - 2.0 ** (-5 - torch.arange(HEADS[1], dtype=torch.float64))).view(-1, 1, 1).expand(*HEADS, steps, 1)
    return [randn(steps, KEYS), randn(steps, KEYS), randn(steps, VALUES), decay.contiguous()]


def mamba2(steps):
    """exp(-softplus(dt) A) for every head and step, and dt in the input."""
    dt = F.softplus(randn(steps, 1))
    return [randn(steps, KEYS), randn(steps, KEYS) * dt, randn(steps, VALUES), torch.exp(-dt * 1.5)]


def delta(steps):
    k, beta = F.normalize(randn(steps, KEYS), dim=-1), torch.sigmoid(randn(steps, 1))
    return [randn(steps, KEYS), beta * k, randn(steps, VALUES), None, k, beta * k]


def gated_delta(steps):
    q, k, v, _, erase, write = delta(steps)
    return [q, k, v, torch.exp(-F.softplus(randn(steps, 1))), erase, write]


def kimi_delta(steps):
    q, k, v, _, erase, write = delta(steps)
    return [q, k, v, torch.sigmoid(randn(steps, KEYS)), erase, write]


def plain(steps):
    return gla(steps)[:3]


LAYERS = {f.__name__: f for f in (plain, gla, retnet, mamba2, delta, gated_delta, kimi_delta)}


def operands(name, steps, state, dtype=torch.float64):
    torch.manual_seed(steps)
    given = LAYERS[name](steps)
    given = [*given, *[None] * (6 - len(given)), randn(KEYS, VALUES) if state else None]
    return [None if x is None else x.to(dtype).requires_grad_() for x in given]


def called(given, log=False):
    q, k, v, decay, erase, write, state = given
    return linear_attention(q, k, v, decay, erase=erase, write=write, state=state, log=log)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_loop_and_so_are_its_gradients(name):
    for steps, state in itertools.product(STEPS, (False, True)):
        given = operands(name, steps, state)
        ours, theirs = called(given), loop(*given)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        grads = [torch.randn_like(x) for x in theirs]
        leaves = [x for x in given if x is not None]
        found, wanted = (torch.autograd.grad(x, leaves, grads) for x in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gla", "gated_delta"])
def test_a_decay_in_logarithms(name):
    given = operands(name, 70, True)
    given[3] = given[3].detach().log().requires_grad_()
    ours = called(given, log=True)
    theirs = loop(*given[:3], given[3].exp(), *given[4:])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad((x[0] ** 2).sum(), given[3])[0] for x in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gla", "gated_delta"])
def test_gates_that_close_are_exact(name):
    given = [None if x is None else x.detach() for x in operands(name, 150, True)]
    given[3][..., 40, :] = 0
    given[3][..., 90:, :] *= 1e-30
    given = [None if x is None else x.requires_grad_() for x in given]
    ours, theirs = called(given), loop(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    later = [None if x is None else x[..., 40:, :] for x in given[:6]]
    torch.testing.assert_close(ours[0][..., 40:, :], called([*later, None])[0], rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(x[0].sum(), [x for x in given if x is not None]) for x in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_decays_that_grow_beyond_their_products():
    q, k, v, decay, *_ = operands("gla", 70, False)
    grown = torch.where(torch.arange(70)[:, None] < 60, 1e12, decay)
    zero = torch.where(torch.arange(70)[:, None] < 62, 0.0, v)
    ours, theirs = linear_attention(q, k, zero, grown), loop(q, k, zero, grown)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x[0].sum(), q, retain_graph=True) for x in (ours, theirs)))


@pytest.mark.parametrize("name", ["gla", "gated_delta"])
def test_it_has_gradients_of_gradients(name):
    given = operands(name, 6, True)
    leaves = [x for x in given if x is not None]

    def f(*some):
        rest = iter(some)
        return called([None if x is None else next(rest) for x in given])

    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["retnet", "gla", "gated_delta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_states_are_kept_in_float32(name, dtype):
    given = [None if x is None else x.detach() for x in operands(name, 300, True, dtype)]
    wide = [None if x is None else x.double() for x in given]
    (found, last), (other, _), (truth, _) = called(given), loop(*given), loop(*wide)
    assert found.dtype == dtype and last.dtype == torch.float32
    worst, eager = ((x.double() - truth).abs().max() for x in (found, other))
    assert worst <= 2 * max(eager, torch.finfo(dtype).eps * truth.abs().max())


def test_leading_dimensions_broadcast():
    q, k, v, decay, *_ = operands("gla", 9, False)
    shared = decay[:1, :1, :1, :1]
    state = torch.randn(3, KEYS, VALUES, dtype=torch.float64)
    ours = linear_attention(q[:1], k, v, shared, state=state)
    theirs = loop(q, k, v, shared.expand(*HEADS, 9, 1), state=state.expand(*HEADS, KEYS, VALUES))
    torch.testing.assert_close(ours[1], theirs[1])
    torch.testing.assert_close(ours[0][0], theirs[0][0])
    ours[0].sum().backward()
    assert q.grad is not None and decay.grad[:1, :1, :1, :1].item() != 0


def test_the_delta_rule_by_name():
    q, _, v, decay, k, *_ = operands("gated_delta", 70, False)
    beta = torch.rand(*HEADS, 70, dtype=torch.float64)
    scaled = beta.unsqueeze(-1) * k
    found = gated_delta_rule(q, k, v, beta, decay.log(), log=True)
    torch.testing.assert_close(found, loop(q, scaled, v, decay, k, scaled), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_no_steps(name):
    given = operands(name, 0, True)
    out, last = called(given)
    assert out.shape == (*HEADS, 0, VALUES) and torch.equal(last, given[-1])
    assert torch.autograd.grad(last.sum(), given[-1])[0].eq(1).all()
    assert not called(operands(name, 0, False))[1].any()


@pytest.mark.parametrize("name", ["plain", "gla", "gated_delta"])
@pytest.mark.parametrize("state", [False, True])
def test_the_operator_is_sound(name, state):
    torch.library.opcheck(torch.ops.gatec.linear_attention.default, (*operands(name, 7, state), False))


def test_what_does_not_fit_is_refused():
    q, k, v, decay, *_ = (x if x is None else x.detach() for x in operands("gla", 3, False))
    with pytest.raises(gatec.GatecError) as caught:
        linear_attention(q, k, v, decay, erase=k)
    assert str(caught.value) == (
        "gatec: floating-point q, k, v, decay, erase with write, and state that fit each other\n"
        "  found q (2, 3, 3, 5) torch.float64, k (2, 3, 3, 5) torch.float64, v (2, 3, 3, 4) torch.float64, "
        "decay (2, 3, 3, 5) torch.float64, erase (2, 3, 3, 5) torch.float64\n  where gatec::linear_attention"
    )
    with pytest.raises(gatec.GatecError, match=r"state \(4, 5\)"):
        linear_attention(q, k, v, state=torch.zeros(4, 5))


class Layer(nn.Module):
    """Keys, values and gates of one input; the state starts from the input too."""

    def __init__(self, erases, shared):
        super().__init__()
        self.erases, self.shared, self.parts = erases, shared, nn.Linear(6, 4 * 4 + 1)

    def forward(self, x):
        q, k, v, gate, beta = self.parts(x).unflatten(-1, (1, -1)).transpose(1, 2).split([4, 4, 4, 4, 1], -1)
        gate = torch.sigmoid(gate[..., :1] if self.shared else gate)
        state = x[:, None, :1, :4].mT * x[:, None, :1, :4]
        if not self.erases:
            return linear_attention(q, k, v, gate, state=state)
        return gated_delta_rule(q, F.normalize(k, dim=-1), v, torch.sigmoid(beta[..., 0]), gate.log(), log=True)


@pytest.mark.parametrize("erases, shared", [(False, False), (False, True), (True, True)])
def test_compiled_whole(erases, shared):
    model = Layer(erases, shared)
    x = torch.randn(2, 9, 6, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    grads = [torch.autograd.grad(m(x)[0].square().sum(), [x, *model.parameters()]) for m in (compiled, model)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("erases, shared", [(False, False), (False, True), (True, True)])
def test_onnx_runs_it_at_other_lengths(erases, shared, tmp_path):
    model = Layer(erases, shared).eval()
    exported = gatec.export(model, tmp_path / "m.onnx", inputs=torch.randn(2, 9, 6))
    assert "sequence=19" in str(exported) and "Scan 1" in str(exported)


def test_onnx_keeps_half_states_in_float32(tmp_path):
    exported = gatec.export(Layer(False, False).eval().half(), tmp_path / "m.onnx", inputs=torch.randn(2, 9, 6).half())
    assert "Scan 1" in str(exported)
