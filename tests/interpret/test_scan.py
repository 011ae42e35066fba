"""The laws of scan kernels: states, every operand's gradient and that of the first state, as close to the truth as eager."""

import pytest
import torch
from law import error, in_every_type, poisoned
from recurrences import RECURRENCES, Recurrence
from sampled import swept

from gatec.kernels.lint import complaints

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def loop(recurrence, operands, h0, reverse):
    """The recurrence as a person writes it."""
    decay = recurrence.decay(*(operands[i] for i in recurrence.decay_of))
    new = recurrence.new(*(operands[i] for i in recurrence.new_of))
    full = torch.broadcast_shapes(decay.shape, new.shape)
    decay, new, states, h = decay.expand(full), new.expand(full), {}, h0
    for t in reversed(range(full[1])) if reverse else range(full[1]):
        h = new[:, t] if h is None else decay[:, t] * h + new[:, t]
        states[t] = h
    return torch.stack([states[t] for t in range(full[1])], 1)


def eager(recurrence, operands, h0, reverse, grad):
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    first = None if h0 is None else h0.detach().clone().requires_grad_()
    out = loop(recurrence, leaves, first, reverse)
    wanted = [*leaves, *([] if first is None else [first])]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad.to(out.dtype))]


def check(recurrence: Recurrence, operands, h0=None, reverse=False):
    made = recurrence.kernel(operands)
    assert not complaints(made.source)
    module, order = made.load(), recurrence.order()
    given = [operands[i] for i in order]
    out = module.forward(*given, h0=h0, dim=1, reverse=reverse)
    grad = torch.randn(out.shape).to(out.dtype)
    found, first = module.backward(grad, out, *given, h0=h0, dim=1, reverse=reverse)
    grads = [found[order.index(i)] for i in range(len(operands))]
    ours = [out, *grads, *([] if first is None else [first])]
    wide = [x.double() for x in operands]
    truth = eager(recurrence, wide, None if h0 is None else h0.double(), reverse, grad)
    theirs = eager(recurrence, operands, h0, reverse, grad)
    for i, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert error(mine, true) <= 2 * max(error(other, true), torch.finfo(mine.dtype).eps), f"result {i}"


@in_every_type("recurrence", RECURRENCES, lambda r: r.name)
def test_kernel_is_as_close_to_the_truth_as_eager(recurrence, dtype):
    torch.manual_seed(0)
    check(recurrence, recurrence.operands(lambda s: poisoned(s, dtype, 0.5), 67))


@pytest.mark.parametrize(
    "steps, reverse", [(1, False), (131, True), *map(swept, [(1, True), (64, False), (64, True), (131, False)])]
)
def test_from_a_first_state_in_both_directions(steps, reverse):
    torch.manual_seed(steps)
    operands = RECURRENCES[0].operands(lambda s: poisoned(s, torch.float32), steps)
    check(RECURRENCES[0], operands, poisoned((3, 5), torch.float32), reverse)


def test_any_strides():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3, 67).permute(1, 2, 0), torch.randn(67, 3, 10)[..., ::2].transpose(0, 1)
    check(RECURRENCES[0], [a, b], torch.randn(5))
    wide = torch.randn(2, 9, 3, 4, 7).movedim(1, 3).movedim(3, 1)
    check(RECURRENCES[0], [wide, torch.randn(2, 9, 3, 1, 7).expand(2, 9, 3, 4, 7)])


def test_a_closed_gate_is_exact():
    recurrence = RECURRENCES[0]
    a, b = recurrence.operands(lambda s: poisoned(s, torch.float32), 131)
    a[:, 70] = -float("inf")
    out = recurrence.kernel([a, b]).load().forward(a, b)
    assert torch.equal(out[:, 70], b[:, 70])


def test_no_steps():
    a, b = RECURRENCES[0].operands(torch.randn, 0)
    module = RECURRENCES[0].kernel([a, b]).load()
    out = module.forward(a, b, h0=torch.randn(3, 5))
    grads, first = module.backward(out, out, a, b, h0=torch.randn(3, 5))
    assert out.shape == (3, 0, 5) and [g.shape for g in grads] == [a.shape, b.shape] and not first.any()
