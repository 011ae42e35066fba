"""The laws of the kernels of matrix recurrences and delta rules: reads, the last state, every gradient, as close as eager."""

import pickle

import pytest
import torch
from law import TYPES, error, in_every_type, poisoned
from sampled import some
from torch.nn import functional as F

from gatec.attending_on_cuda import Falling, Given, backward_on_cuda, backward_side, forward_side, kernel_of, on_cuda
from gatec.dispatch import CHOOSER
from gatec.dispatch.forms import Form
from gatec.dispatch.verify import Trial, Wrong, verified
from gatec.kernels.lint import complaints
from gatec.kernels.recurrence import render
from gatec.linear_attention.operator import backward, forward

KINDS = ["none", "shared", "keyed"]
# With a delta rule and a decay for each key the interpreter takes seconds for each chunk.
CASES = [*((kind, delta) for kind in KINDS for delta in (False, True))]
QUICK = [pytest.param(*case, marks=[pytest.mark.sweep] if case == ("keyed", True) else []) for case in CASES]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def operands(kind, dtype, steps, lead=(1,), keys=19, values=23, state=True, decay=None, delta=False):
    """q, k, v, then the logarithm of the decay, erase, write and the first state, or None."""
    shapes = [(steps, keys), (steps, keys), (steps, values)]
    found = [poisoned((*lead, *s), dtype, 0.5) for s in shapes]
    width = {"none": 0, "shared": 1, "keyed": keys}[kind]
    logs = poisoned((*lead, steps, width), dtype) if width else None
    if logs is not None:
        logs.copy_(F.logsigmoid(logs.float()) if decay is None else torch.full_like(logs, decay))
    erase, write = (poisoned((*lead, steps, keys), dtype) if delta else None for _ in range(2))
    if delta:  # what is taken away is a part of what is there, or states would grow
        erase.copy_(F.normalize(erase.float(), dim=-1))
        write.copy_(0.8 * erase.float() + 0.2 * F.normalize(write.float(), dim=-1))
    return [*found, logs, erase, write, poisoned((*lead, keys, values), torch.float32, 0.5) if state else None]


def eager(given, grads):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given]
    out = forward(*leaves, True)
    wanted = [x for x in leaves if x is not None]
    found = torch.autograd.grad(out, wanted, [g.to(o.dtype) for g, o in zip(grads, out, strict=True)])
    return [*(x.detach() for x in out), *found]


def rendered(kind, given):
    there = [x for x in given if x is not None]
    made = render(kind, tuple(x.dtype for x in there), given[0].dtype, given[6] is not None, given[4] is not None)
    assert not complaints(made.source)
    return made.load(), there


def check(kind, given):
    module, there = rendered(kind, given)
    out, last = module.forward(*there)
    grads = [torch.randn(out.shape).to(out.dtype), torch.randn(last.shape)]
    ours = [out, last, *module.backward(*grads, *there)]
    truth = eager([None if x is None else x.double() for x in given], grads)
    theirs = eager(given, grads)
    for i, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert spread(mine, true) <= 2 * max(spread(other, true), torch.finfo(mine.dtype).eps / 4), f"result {i}"
        assert error(mine, true) <= 4 * max(error(other, true), torch.finfo(mine.dtype).eps), f"result {i}"


def spread(found, truth):
    """The error of all numbers together: the largest single one of some hundred roundings says little at a time."""
    return float((found.double() - truth).norm() / truth.norm().clamp_min(1e-30))


@in_every_type("case", CASES)
def test_kernel_is_as_close_to_the_truth_as_eager(case, dtype):
    kind, delta = case
    torch.manual_seed(0)
    check(kind, operands(kind, dtype, 19 if delta else 67, delta=delta))


@pytest.mark.parametrize("steps", [1, 37])
@pytest.mark.parametrize(("kind", "delta"), QUICK)
def test_fewer_steps_and_no_first_state(kind, steps, delta):
    torch.manual_seed(steps)
    check(kind, operands(kind, torch.float32, steps, state=False, delta=delta))


@pytest.mark.parametrize(("kind", "delta"), QUICK[2:])
def test_a_strong_decay(kind, delta):
    torch.manual_seed(0)
    check(kind, operands(kind, torch.float32, 37, decay=-20.0, delta=delta))


@pytest.mark.parametrize(("kind", "delta"), some(CASES[2:]))
def test_a_gate_that_closes(kind, delta):
    torch.manual_seed(0)
    given = operands(kind, torch.float32, 37, (1 if delta else 3,), delta=delta)
    given[3][..., 20, :] = -float("inf")
    given[3][..., 5, :] = -1e30
    check(kind, given)


@pytest.mark.parametrize(("kind", "delta"), some(CASES, at=1))
def test_several_tiles_and_any_strides(kind, delta):
    torch.manual_seed(0)
    given = operands(kind, torch.float32, 18, (1, 2), keys=35, values=37, delta=delta)
    given[0] = torch.randn(18, 35).expand(1, 2, 18, 35)  # shared by the heads
    given[2] = torch.randn(1, 18, 2, 74)[..., ::2].transpose(1, 2)
    if delta:
        given[5] = given[4]  # as where a step erases what it was asked for
    check(kind, given)


@pytest.mark.parametrize(("kind", "delta"), CASES)
def test_no_steps(kind, delta):
    given = operands(kind, torch.float32, 0, delta=delta)
    module, there = rendered(kind, given)
    out, last = module.forward(*there)
    assert out.shape == given[2].shape and torch.equal(last, given[6])
    grads = module.backward(out, last, *there)
    assert [g.shape for g in grads] == [x.shape for x in there] and torch.equal(grads[-1], last)


def test_only_the_gradients_that_are_needed():
    module, given = rendered("keyed", operands("keyed", torch.float32, 5, keys=8, values=8, delta=True))
    out, last = module.forward(*given)
    every = module.backward(out, last, *given)
    for needs in ((False, True, False, True, True, False, False), (False,) * 6 + (True,)):
        some = module.backward(out, last, *given, needs=needs)
        assert [g is not None for g in some] == [*needs]
        assert all(torch.equal(g, whole) for g, whole in zip(some, every, strict=True) if g is not None)


@pytest.mark.parametrize(
    ("kind", "dtype", "delta"),
    [
        *((kind, dtype, False) for kind, dtype in zip(KINDS, TYPES, strict=True)),
        ("none", torch.float32, True),
        pytest.param("shared", torch.float16, True, marks=pytest.mark.sweep),
        pytest.param("keyed", torch.bfloat16, True, marks=pytest.mark.sweep),
    ],
    ids=str,
)
def test_every_way_passes_the_verification_of_a_device(kind, dtype, delta):
    given = operands(kind, dtype, 20, keys=8, values=6, state=kind != "shared", delta=delta)
    there = [x for x in given if x is not None]
    kernel, known = kernel_of(given, True), Given.of(given)
    needs = tuple(i != 1 for i in range(len(there)))
    forms = [Form.of(x) for x in there]
    back = [Form.of(x) for x in (torch.randn(1, 20, 6).to(dtype), torch.randn(1, 8, 6), *there)]
    for side, shapes in ((forward_side(kernel, known), forms), (backward_side(kernel, known, needs), back)):
        for way in side.ways.values():
            verified(pickle.loads(pickle.dumps(Trial(way, side.eager, side.exact, tuple(shapes), "cpu"))))
        with pytest.raises(Wrong, match="result 0"):
            wrong = Trial(
                lambda *xs, s=side: [1.1 * x for x in s.eager(*xs)], side.eager, side.exact, tuple(shapes), "cpu"
            )
            verified(wrong)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_stand_ins_of_a_delta_rule_do_not_grow(dtype):
    given = [torch.randn(2, 400, n).to(dtype) for n in (16, 16, 8, 16, 16)]
    seen = {}
    run = Falling(lambda *xs: seen.update({len(seen): xs}), Given(decay=False, delta=True, state=False))
    run(*given)
    run(*(x.double() for x in given))
    for x, y in zip(seen[0], seen[1], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=torch.finfo(dtype).smallest_normal)
    q, k, v, erase, write = seen[1]
    last = forward(q, 0 * k, v, None, erase, write, torch.ones(2, 16, 8).double(), True)[1]
    assert last.isfinite().all() and last.abs().max() < 1


def test_cuda_asks_for_the_kernel_only_where_there_is_one():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gatec::linear_attention", "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gatec::linear_attention_backward", "CUDA")
    q, k, v, decay, erase, write, state = operands("keyed", torch.float32, 20, delta=True)
    assert kernel_of((q, k, v, decay, None, None, state), True).name == "recurrence_keyed"
    assert kernel_of((q, k, v, decay, erase, write, state), True).name == "delta_keyed"
    others = {
        "raw decays": ((q, k, v, decay, None, None, state), False),
        "float64": ((q.double(), k, v, decay, None, None, state), True),
        "wide values": ((q, k, torch.randn(1, 20, 160), decay, None, None, None), True),
        "no steps": (tuple(None if x is None else x[:, :0] for x in (q, k, v, decay, None, None, None)), True),
    }
    assert {name: kernel_of(*given) for name, given in others.items()} == dict.fromkeys(others)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_the_dispatch_runs_the_chosen_way(monkeypatch, delta):
    """The operator's body on CUDA, called here with a choice that always says yes."""
    monkeypatch.setattr(CHOOSER, "way", lambda side, tensors: side.ways["kernel"])
    given = operands("keyed", torch.float32, 20, delta=delta)
    given[3][..., 3, :] = 0.5  # a state that grows: only stand-ins are made to fall
    whole = (*given, True)
    for mine, theirs in zip(on_cuda(*whole), forward(*whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    grads = [torch.randn(1, 20, 23), torch.randn(1, 19, 23)]
    needs = [True, False, True, True, delta, False, True]
    for mine, theirs in zip(backward_on_cuda(*grads, *whole, needs), backward(*grads, *whole, needs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
