"""Recurrences on a CPU in several levels, whose memory is used again: as the loop, whoever else uses it."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gatec import ladder
from gatec.ladder import KEPT, POOL
from gatec.recurrence import linear_recurrence
from gatec.sweep import BLOCK, SHORT, SMALL

TALL = [*range(SHORT, SHORT + 9), 511, 513, 1000, 1024]


def loop(a, b, h0=None, reverse=False):
    found, h = {}, h0
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = b[:, t] if h is None else a[:, t] * h + b[:, t]
        found[t] = h
    return torch.stack([found[t] for t in range(b.shape[1])], 1)


def operands(steps, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return torch.rand(2, steps, 3, dtype=dtype), torch.randn(2, steps, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)


@pytest.fixture(params=[True, False], ids=["in order", "in no order"])
def order(request, monkeypatch):
    """Operators on lists as they are, and as they would be if their tensors followed each other no more."""
    POOL.clear()
    if not request.param:
        monkeypatch.setattr(ladder, "in_order", lambda: False)
    else:
        assert ladder.in_order()


@pytest.mark.parametrize("steps", TALL)
def test_levels_with_steps_to_spare(steps, order):
    a, b, h0 = operands(steps)
    for reverse, state, gate in itertools.product((False, True), (h0, None), (a, a[:, :, :1])):
        found = linear_recurrence(gate, b, state, reverse=reverse)
        torch.testing.assert_close(found, loop(gate, b, state, reverse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_products_that_grow_too_large_in_a_level_above(reverse):
    a, b = torch.full((1, 512, 2), 100.0), torch.zeros(1, 512, 2)
    assert torch.isfinite(a[0, :16].prod(0)).all() and not torch.isfinite(a[0, :32].prod(0)).any()
    b[:, 2 if reverse else -3] = 1
    torch.testing.assert_close(linear_recurrence(a, b, reverse=reverse), loop(a, b, reverse=reverse))
    b[:, 40:42] = torch.tensor([torch.inf, -torch.inf])
    found = linear_recurrence(a, b, reverse=reverse)
    torch.testing.assert_close(found, loop(a, b, reverse=reverse), equal_nan=True)


def test_complex_states_and_their_gradients():
    made = [torch.polar(a, b).detach() for a, b, _ in (operands(67), operands(67, seed=1))]
    given = [x.requires_grad_() for x in (*made, torch.randn(2, 3, dtype=torch.complex128))]
    ours, theirs = linear_recurrence(*given), loop(*given)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, given, grad) for x in (ours, theirs)))


def test_what_was_returned_stays_what_it_is():
    first, second = operands(TALL[-1]), operands(TALL[-1], seed=1)
    found = linear_recurrence(*first)
    before = found.clone()
    linear_recurrence(*second)
    assert POOL and torch.equal(found, before)


def test_memory_made_in_inference_mode_serves_training():
    a, b, h0 = operands(TALL[-1])
    POOL.clear()
    with torch.inference_mode():
        inside = linear_recurrence(a, b, h0)
    outside = linear_recurrence(a.requires_grad_(), b, h0)
    outside.sum().backward()
    assert torch.equal(inside.clone(), outside.detach()) and a.grad.isfinite().all()


def test_large_ones_with_steps_to_spare():
    for steps, reverse in itertools.product(
        (SMALL // 512 + 3, BLOCK // 512 + 3, BLOCK // 512 + SHORT + 8), (False, True)
    ):
        a, b, h0 = torch.rand(2, steps, 256), torch.randn(2, steps, 256), torch.randn(2, 256)
        torch.testing.assert_close(linear_recurrence(a, b, h0, reverse=reverse), loop(a, b, h0, reverse))


def test_threads_do_not_share_memory_that_is_in_use():
    given = [operands(TALL[-2], torch.float32, seed) for seed in range(8)]
    alone = [linear_recurrence(*x) for x in given]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            together = threads.map(lambda x: linear_recurrence(*x), given)
            assert all(map(torch.equal, together, alone))


def test_little_memory_is_kept():
    for steps in range(1, 3 * KEPT):
        linear_recurrence(*operands(SHORT * steps))
    assert len(POOL) == KEPT
    POOL.clear()
    linear_recurrence(torch.rand(1, 5000, 700), torch.randn(1, 5000, 700))
    assert all(found.new.numel() <= BLOCK // 4 for found in POOL.values())
