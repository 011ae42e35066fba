"""The laws of the kernel of matrix recurrences: what is read, the last state and every gradient, as close as eager."""

import pickle

import pytest
import torch
from law import TYPES, error, in_every_type, poisoned
from torch.nn import functional as F

from gatec.attending_on_cuda import backward_on_cuda, backward_side, forward_side, kernel_of, on_cuda
from gatec.dispatch import CHOOSER
from gatec.dispatch.forms import Form
from gatec.dispatch.verify import Trial, Wrong, verified
from gatec.kernels.lint import complaints
from gatec.kernels.recurrence import render
from gatec.linear_attention.operator import backward, forward

KINDS = ["none", "shared", "keyed"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def operands(kind, dtype, steps, lead=(1,), keys=19, values=23, state=True, decay=None):
    """q, k, v, then the logarithm of the decay and the first state, or None."""
    shapes = [(steps, keys), (steps, keys), (steps, values)]
    found = [poisoned((*lead, *s), dtype, 0.5) for s in shapes]
    width = {"none": 0, "shared": 1, "keyed": keys}[kind]
    logs = poisoned((*lead, steps, width), dtype) if width else None
    if logs is not None:
        logs.copy_(F.logsigmoid(logs.float()) if decay is None else torch.full_like(logs, decay))
    return [*found, logs, poisoned((*lead, keys, values), torch.float32, 0.5) if state else None]


def eager(given, grads):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given]
    q, k, v, decay, state = leaves
    out = forward(q, k, v, decay, None, None, state, True)
    wanted = [x for x in leaves if x is not None]
    found = torch.autograd.grad(out, wanted, [g.to(o.dtype) for g, o in zip(grads, out, strict=True)])
    return [*(x.detach() for x in out), *found]


def check(kind, given):
    there = [x for x in given if x is not None]
    made = render(kind, tuple(x.dtype for x in there), given[0].dtype, given[4] is not None)
    assert not complaints(made.source)
    out, last = made.load().forward(*there)
    grads = [torch.randn(out.shape).to(out.dtype), torch.randn(last.shape)]
    ours = [out, last, *made.load().backward(*grads, *there)]
    truth = eager([None if x is None else x.double() for x in given], grads)
    theirs = eager(given, grads)
    for i, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert error(mine, true) <= 2 * max(error(other, true), torch.finfo(mine.dtype).eps), f"result {i}"


@in_every_type("kind", KINDS)
def test_kernel_is_as_close_to_the_truth_as_eager(kind, dtype):
    torch.manual_seed(0)
    check(kind, operands(kind, dtype, 67))


@pytest.mark.parametrize("steps", [1, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_steps_and_no_first_state(kind, steps):
    torch.manual_seed(steps)
    check(kind, operands(kind, torch.float32, steps, state=False))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_strong_decay(kind):
    torch.manual_seed(0)
    check(kind, operands(kind, torch.float32, 37, decay=-20.0))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_gate_that_closes(kind):
    torch.manual_seed(0)
    given = operands(kind, torch.float32, 37, (3,))
    given[3][..., 20, :] = -float("inf")
    given[3][..., 5, :] = -1e30
    check(kind, given)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tiles_and_any_strides(kind):
    torch.manual_seed(0)
    given = operands(kind, torch.float32, 18, (1, 2), keys=35, values=37)
    given[0] = torch.randn(18, 35).expand(1, 2, 18, 35)  # shared by the heads
    given[2] = torch.randn(1, 18, 2, 74)[..., ::2].transpose(1, 2)
    check(kind, given)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps(kind):
    given = operands(kind, torch.float32, 0)
    there = [x for x in given if x is not None]
    module = render(kind, tuple(x.dtype for x in there), torch.float32, True).load()
    out, last = module.forward(*there)
    assert out.shape == given[2].shape and torch.equal(last, given[4])
    grads = module.backward(out, last, *there)
    assert [g.shape for g in grads] == [x.shape for x in there] and torch.equal(grads[-1], last)


def test_only_the_gradients_that_are_needed():
    given = operands("keyed", torch.float32, 20)
    module = render("keyed", (torch.float32,) * 5, torch.float32, True).load()
    out, last = module.forward(*given)
    every = module.backward(out, last, *given)
    some = module.backward(out, last, *given, needs=(False, True, False, True, False))
    assert [g is None for g in some] == [True, False, True, False, True]
    assert torch.equal(some[1], every[1]) and torch.equal(some[3], every[3])


@pytest.mark.parametrize(("kind", "dtype"), [*zip(KINDS, TYPES, strict=True)], ids=str)
def test_every_way_passes_the_verification_of_a_device(kind, dtype):
    given = operands(kind, dtype, 20, keys=8, values=6, state=kind != "shared")
    there = [x for x in given if x is not None]
    kernel = kernel_of((*given[:4], None, None, given[4]), True)
    needs = tuple(i != 1 for i in range(len(there)))
    forms = [Form.of(x) for x in there]
    back = [Form.of(x) for x in (torch.randn(1, 20, 6).to(dtype), torch.randn(1, 8, 6), *there)]
    for side, shapes in ((forward_side(kernel, kind != "none", kind != "shared"), forms),
                         (backward_side(kernel, kind != "none", kind != "shared", needs), back)):  # fmt: skip
        for way in side.ways.values():
            verified(pickle.loads(pickle.dumps(Trial(way, side.eager, side.exact, tuple(shapes), "cpu"))))
        with pytest.raises(Wrong, match="result 0"):
            wrong = Trial(
                lambda *xs, s=side: [1.1 * x for x in s.eager(*xs)], side.eager, side.exact, tuple(shapes), "cpu"
            )
            verified(wrong)


def test_cuda_asks_for_the_kernel_only_where_there_is_one():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gatec::linear_attention", "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gatec::linear_attention_backward", "CUDA")
    q, k, v, decay, state = operands("keyed", torch.float32, 20)
    assert kernel_of((q, k, v, decay, None, None, state), True) is not None
    others = {
        "raw decays": ((q, k, v, decay, None, None, state), False),
        "a delta rule": ((q, k, v, decay, k, k, state), True),
        "float64": ((q.double(), k, v, decay, None, None, state), True),
        "wide values": ((q, k, torch.randn(1, 20, 160), decay, None, None, None), True),
        "no steps": (tuple(None if x is None else x[:, :0] for x in (q, k, v, decay, None, None, None)), True),
    }
    assert {name: kernel_of(*given) for name, given in others.items()} == dict.fromkeys(others)


def test_the_dispatch_runs_the_chosen_way(monkeypatch):
    """The operator's body on CUDA, called here with a choice that always says yes."""
    monkeypatch.setattr(CHOOSER, "way", lambda side, tensors: side.ways["kernel"])
    given = operands("keyed", torch.float32, 20)
    given[3][..., 3, :] = 0.5  # a state that grows: only stand-ins are made to fall
    whole = (*given[:4], None, None, given[4], True)
    for mine, theirs in zip(on_cuda(*whole), forward(*whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    grads = [torch.randn(1, 20, 23), torch.randn(1, 19, 23)]
    needs = [True, False, True, True, False, False, True]
    for mine, theirs in zip(backward_on_cuda(*grads, *whole, needs), backward(*grads, *whole, needs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
