"""All states of h[t] = a[t] * h[t-1] + b[t] with time as the first dimension, in PyTorch's own operators.

Every few steps are reduced to one (the product of their decays, and their state from zero), those steps are a
recurrence of the same form, and its states start the groups. Nothing is ever divided by a decay, so gates that close
(a = 0) are exact. Where a product grows beyond what its type holds, what it was multiplied with is no number from
there to the last state, and time is walked step by step instead.
"""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from gatec.ladder import Views, begin, chain, ladder, put_back

SHORT = 32  # steps that are not worth grouping
BLOCK = 2**19  # elements that are worked on at a time, so that they stay in the cache
GROUP = 4  # steps that are reduced to one
SMALL = 2**17  # elements; twice as many steps of larger ones are, because less is written and read again
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
        groups(a, b, h0, out, reverse)
        return
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        span = slice(steps - stop, steps - start) if reverse else slice(start, stop)
        sweep(a[span], b[span], h0, out[span], reverse)
        h0 = out[span.start if reverse else span.stop - 1]


def groups(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Reduce, recur, apply."""
    size = GROUP if out.numel() <= SMALL else 2 * GROUP
    decay, new, state = (phases(x, size, reverse) for x in (a, b, out))
    above = ladder(decay[-1], new[-1], len(state[0]), reverse)
    parts = list(zip(decay, new, strict=True))
    if len(b) % size:
        parts = [(begin(x, len(above.new), reverse), begin(y, len(above.new), reverse)) for x, y in parts]
    (x, y), (x2, y2), *more = parts
    torch.mul(x, x2, out=above.decay)
    torch.addcmul(y2, x2, y, out=above.new)
    for x, y in more:
        above.decay.mul_(x)
        torch.addcmul(y, x, above.new, out=above.new)
    above.solve(h0)
    before = above.before
    for x, y, found in zip(decay, new, state, strict=True):
        before = torch.addcmul(y, x, begin(before, len(found), reverse), out=found)
    put_back(above)
    if b.device.type == "cpu" and not cmath.isfinite(out[0 if reverse else -1].sum().item()):
        walk(a, b, h0, out, reverse)


def phases(x: Tensor, size: int, reverse: bool) -> Views:
    """Every first step of `size`, every second, and so on."""
    if len(x) % size:
        return tuple(x[(len(x) - 1 - s) % size if reverse else s :: size] for s in range(size))
    steps: Views = x.unflatten(0, (-1, size)).unbind(1)
    return steps[::-1] if reverse else steps


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
