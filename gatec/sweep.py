"""All states of h[t] = a[t] * h[t-1] + b[t] with time as the first dimension, in PyTorch's own operators.

Every two steps are reduced to one (the product of their decays, and their state from zero), those steps are a
recurrence of the same form, and its states start the pairs. Nothing is ever divided by a decay, so gates that close
(a = 0) are exact. Where a product or a state grows beyond what its type holds, time is walked step by step instead.
"""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from gatec.ladder import Views, begin, chain, halves, ladder, put_back

SHORT = 32  # steps that are not worth halving
BLOCK = 2**19  # elements that are worked on at a time, so that they stay in the cache
LANES = 2**11  # as many are a step that nothing makes faster
NEAR = 2**15  # elements that are in the cache when they are read again


def sweep(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Write all states to `out`. Pieces of time follow each other, so that each stays in the cache."""
    steps = len(b)
    lanes, here = out.numel() // steps, b.device.type == "cpu"
    if steps < SHORT or (here and lanes >= LANES):
        walk(a, b, h0, out, reverse)
        return
    size = max(BLOCK // lanes, SHORT) if here else steps
    if steps <= size:
        pairs(a, b, h0, out, reverse)
        return
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        span = slice(steps - stop, steps - start) if reverse else slice(start, stop)
        sweep(a[span], b[span], h0, out[span], reverse)
        h0 = out[span.start if reverse else span.stop - 1]


def pairs(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Reduce, recur, apply."""
    (a1, a2), (b1, b2), (state1, state2) = (halves(x, reverse) for x in (a, b, out))
    above = ladder(a2, b2, len(state1), reverse)
    count = len(state2)
    torch.mul(begin(a1, count, reverse), a2, out=above.decay)
    torch.addcmul(b2, a2, begin(b1, count, reverse), out=above.new)
    above.solve(h0)
    torch.addcmul(b1, a1, above.before, out=state1)
    torch.addcmul(b2, a2, begin(state1, count, reverse), out=state2)
    put_back(above)
    if b.device.type == "cpu" and not cmath.isfinite(out.sum().item()):
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
