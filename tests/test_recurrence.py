"""The operator gatec::scan: as the loop, for every shape of gate, in both directions, with every gradient."""

import itertools

import pytest
import torch
from torch import nn

import gatec
from gatec.kernels.lint import complaints
from gatec.recurrence import linear_recurrence
from gatec.scanning import kernel_for, on_cuda
from gatec.sweep import BLOCK, LANES, SHORT

STEPS = [1, 2, SHORT - 1, SHORT, 67, 325]
GATES = {
    "tile": (2, None, 3),
    "channel": (1, 1, 3),
    "head": (2, None, 1),
    "number": (),
    "vector": (3,),
    "one": (2, 1, 3),
}


def loop(a, b, h0=None, dim=1, reverse=False):
    full = torch.broadcast_shapes(a.shape, b.shape)
    decay, new, found = a.expand(full).unbind(dim), b.expand(full).unbind(dim), {}
    h = h0
    for t in reversed(range(full[dim])) if reverse else range(full[dim]):
        h = new[t] if h is None else decay[t] * h + new[t]
        found[t] = h
    return torch.stack([found[t] for t in range(full[dim])], dim)


def operands(steps, gate="tile", state=True, dtype=torch.float64):
    torch.manual_seed(steps)
    a = torch.rand([steps if n is None else n for n in GATES[gate]], dtype=dtype)
    made = [a, torch.randn(2, steps, 3, dtype=dtype), *([torch.randn(2, 3, dtype=dtype)] if state else [])]
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("gate", GATES)
def test_it_is_the_loop_and_so_are_its_gradients(gate, reverse):
    for steps, state in itertools.product(STEPS, (False, True)):
        given = operands(steps, gate, state)
        ours, theirs = (f(*given, reverse=reverse) for f in (linear_recurrence, loop))
        grad = torch.randn_like(theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(ours, given, grad)
        wanted = torch.autograd.grad(theirs, given, grad, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_it_has_gradients_of_gradients(reverse):
    assert torch.autograd.gradgradcheck(lambda *x: linear_recurrence(*x, reverse=reverse), operands(19))


def test_any_dimension_and_any_strides():
    a, b = torch.rand(7, 3, 40).transpose(0, 2), torch.randn(7, 40, 3).permute(1, 2, 0)
    for dim in (0, 1, 2, -1):
        torch.testing.assert_close(linear_recurrence(a, b, dim=dim), loop(a, b, dim=dim))
    assert linear_recurrence(a, b).stride() == b.stride()


def test_a_state_of_several_dimensions_and_a_gate_that_broadcasts():
    a, b, h0 = torch.rand(2, 33, 1, 4), torch.randn(2, 33, 5, 4), torch.randn(5, 1)
    torch.testing.assert_close(linear_recurrence(a, b, h0), loop(a, b, h0.expand(2, 5, 4)))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("steps, lanes", [(300, 700), (70, LANES), (2 * BLOCK // 700 + 3, 700)])
def test_a_large_one_is_worked_on_in_pieces_or_step_by_step(steps, lanes, reverse):
    a, b, h0 = torch.rand(1, steps, lanes), torch.randn(1, steps, lanes), torch.randn(1, lanes)
    torch.testing.assert_close(linear_recurrence(a, b, h0, reverse=reverse), loop(a, b, h0, reverse=reverse))


def test_no_steps():
    given = [torch.rand(2, 0, 3, requires_grad=True), torch.rand(2, 0, 3), torch.rand(2, 3, requires_grad=True)]
    out = linear_recurrence(*given)
    assert out.shape == (2, 0, 3)
    a, h0 = torch.autograd.grad(out.sum(), [given[0], given[2]])
    assert a.shape == (2, 0, 3) and not h0.any()


def test_a_closed_gate_forgets_everything():
    a, b = torch.rand(1, 64, 2), torch.randn(1, 64, 2)
    a[:, 40] = 0
    other = torch.cat([torch.randn(1, 40, 2), b[:, 40:]], 1)
    assert torch.equal(linear_recurrence(a, b)[:, 40:], linear_recurrence(a, other)[:, 40:])
    torch.testing.assert_close(linear_recurrence(a, b), loop(a, b))
    b[:, 10] = torch.inf  # 0 * inf is no number in the loop either
    torch.testing.assert_close(linear_recurrence(a, b), loop(a, b), equal_nan=True)


def test_decays_that_grow_beyond_their_products():
    a, b = torch.full((1, 64, 2), 1e12), torch.zeros(1, 64, 2)
    assert not linear_recurrence(a, b).any()
    b[:, 62:] = 1
    torch.testing.assert_close(linear_recurrence(a, b), loop(a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_states_are_kept_in_float32(dtype):
    a, b, h0 = (x.detach().to(dtype) for x in operands(500))
    a = 1 - a / 100
    found, truth = linear_recurrence(a, b, h0), loop(a.double(), b.double(), h0.double())
    assert found.dtype == dtype
    worst, eager = ((x.double() - truth).abs().max() for x in (found, loop(a, b, h0)))
    assert worst <= eager
    assert dtype == torch.float32 or worst <= torch.finfo(dtype).eps * truth.abs().max()


def test_types_promote_as_the_loop_does():
    a, b, h0 = torch.rand(2, 5, 3), torch.randn(2, 5, 3).bfloat16(), torch.randn(2, 3, dtype=torch.float64)
    assert linear_recurrence(a, b).dtype == torch.float32
    assert linear_recurrence(a, b, h0).dtype == torch.float64
    assert linear_recurrence(0.5, b).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_recurrence(a, b.float()).dtype == (a * b.float()).dtype


@pytest.mark.parametrize("state", [False, True])
def test_the_operator_is_sound(state):
    given = [*operands(21, state=state), *([] if state else [None])]
    torch.library.opcheck(torch.ops.gatec.scan.default, (*given, 1, False))
    torch.library.opcheck(torch.ops.gatec.scan.default, (*(x if x is None else x.detach() for x in given), -2, True))


@pytest.mark.parametrize(
    "given, words",
    [
        ((torch.rand(2, 5, 3), torch.rand(2, 5, 3), None, 3),
         "gatec: a dimension of a recurrence over 3 dimensions\n  found 3\n  where gatec::scan"),
        ((torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64), None, 0),
         "gatec: floating-point a, b and h0 that broadcast\n"
         "  found a (4,), b (4,) in torch.int64\n  where gatec::scan"),
    ],
)  # fmt: skip
def test_what_is_refused(given, words):
    *tensors, dim = given
    with pytest.raises(gatec.GatecError) as caught:
        linear_recurrence(*tensors, dim=dim)
    assert str(caught.value) == words


class Gated(nn.Module):
    def __init__(self, gate, state, reverse):
        super().__init__()
        self.gate, self.state, self.reverse, self.to_gate = gate, state, reverse, nn.Linear(5, 5)

    def forward(self, x):
        a = torch.sigmoid(self.to_gate(x) if self.gate == "tile" else self.to_gate.bias)
        return linear_recurrence(a, x, x.mean(1) if self.state else None, reverse=self.reverse)


@pytest.mark.parametrize("gate", ["tile", "vector"])
@pytest.mark.parametrize("state, reverse", [(False, False), (True, True)])
def test_onnx_runs_it_at_other_lengths(gate, state, reverse, tmp_path):
    exported = gatec.export(Gated(gate, state, reverse).eval(), tmp_path / "m.onnx", inputs=torch.randn(2, 9, 5))
    assert "sequence=19" in str(exported)


def test_onnx_keeps_half_states_in_float32(tmp_path):
    model = Gated("tile", True, False).eval().half()
    gatec.export(model, tmp_path / "m.onnx", inputs=torch.randn(2, 9, 5).half())


class Written(Gated):
    """The recurrence as a loop."""

    def forward(self, x):
        a, h, out = torch.sigmoid(self.to_gate(x)), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def test_onnx_runs_a_rolled_loop_at_other_lengths(tmp_path):
    x = torch.randn(2, 9, 5)
    exported = gatec.export(gatec.reroll(Written("tile", False, False).eval(), x), tmp_path / "m.onnx", inputs=x)
    assert "sequence=19" in str(exported) and "Scan 1" in str(exported)


def test_compiled_whole():
    model = torch.compile(Gated("tile", True, False).eval(), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, 5, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "types", [*itertools.product([torch.float32, torch.bfloat16, torch.float64], repeat=2)], ids=str
)
def test_its_kernel_is_generated_for_every_type(types):
    source = kernel_for(*types).source
    assert not complaints(source) and f"DTYPES = {types}" in source


def test_what_cuda_would_run_is_the_operator():
    a, b, h0 = (x.detach() for x in operands(67))
    for reverse in (False, True):
        torch.testing.assert_close(on_cuda(a, b, h0, -2, reverse), linear_recurrence(a, b, h0, reverse=reverse))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device():
    given = [x.detach().float().cuda().requires_grad_() for x in operands(500)]
    ours, theirs = linear_recurrence(*given), loop(*given)
    torch.testing.assert_close(ours, theirs)
    grads = (torch.autograd.grad(x.sum(), given) for x in (ours, theirs))
    torch.testing.assert_close(*grads)
