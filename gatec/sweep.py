"""All states of h[t] = a[t] * h[t-1] + b[t] with time as the first dimension, in PyTorch's own operators.

Time is cut into groups of steps. Every group is reduced to one step (the product of its decays, and its state from
zero), those steps are a shorter recurrence of the same form, and its states start the groups. Nothing is ever divided
by a decay, so gates that close (a = 0) are exact. Where a product grows beyond what its type holds, what it was
multiplied with is no number from there to the last state, and time is walked step by step instead.
"""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from gatec.ladder import GROUP, Views, chain, level, multiply, put_back

BLOCK = 2**19  # elements that are worked on at a time, so that they stay in the cache
LANES = 2**11  # as many are a step that no grouping makes faster
NEAR = 2**15  # elements that are in the cache when they are read again


def sweep(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Write all states to `out`. Pieces of time follow each other, so that each stays in the cache."""
    steps = len(b)
    lanes, here = out.numel() // steps, b.device.type == "cpu"
    if steps < 4 * GROUP or (here and lanes >= LANES):
        walk(a, b, h0, out, reverse)
        return
    size = max(BLOCK // lanes // GROUP, 2) * GROUP if here else steps
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        whole = stop - (stop - start) % GROUP
        for method, first, last in ((groups, start, whole), (walk, whole, stop)):
            if first < last:
                span = slice(steps - last, steps - first) if reverse else slice(first, last)
                given = (a, b, out) if last - first == steps else (a[span], b[span], out[span])
                method(*given[:2], h0, given[2], reverse)
                h0 = given[2][0 if reverse else -1]


def groups(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Reduce, recur, apply."""
    order = slice(None, None, -1) if reverse else slice(None)
    form = (len(b) // GROUP, GROUP)
    decay, new, state = (x.unflatten(0, form).unbind(1)[order] for x in (a, b, out))
    above = level(decay[0], new[0], reverse)
    torch.mul(decay[0], decay[1], out=above.decay)
    multiply(above.decay, decay[2:])
    torch.addcmul(new[1], decay[1], new[0], out=above.new)
    for t in range(2, GROUP):
        torch.addcmul(new[t], decay[t], above.new, out=above.new)
    above.solve(h0)
    follow(decay, new, above.before, state)
    put_back(above)
    if b.device.type == "cpu" and not cmath.isfinite(out[0 if reverse else -1].sum().item()):
        walk(a, b, h0, out, reverse)


def walk(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Step by step."""
    order = slice(None, None, -1) if reverse else slice(None)
    decay, state = a.unbind(0)[order], out.unbind(0)[order]
    if out.numel() <= NEAR:
        out.copy_(b)
        if h0 is not None:
            state[0].addcmul_(decay[0], h0)
        chain(decay, state)
        return
    new = b.unbind(0)[order]
    first = state[0].copy_(new[0]) if h0 is None else torch.addcmul(new[0], decay[0], h0, out=state[0])
    follow(decay[1:], new[1:], first, state[1:])


def follow(decay: Views, new: Views, before: Tensor, state: Views) -> None:
    """Each state from the one before."""
    for a, b, out in zip(decay, new, state, strict=True):
        before = torch.addcmul(b, a, before, out=out)
