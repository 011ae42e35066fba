"""The states before each step of a recurrence h[t] = a[t] * h[t-1] + b[t], by halving it, in memory of its own.

Two steps are one step, so that half as many remain; where few do, they follow each other. Then each level gives every
second state of the one before, and finds those between. On a CPU the views of all levels are made once and used again,
because a view takes half as long as an operator of a short recurrence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEW = 16  # steps that are not halved
KEPT = 8  # ladders that are kept for the next recurrence of their form
Views = tuple[Tensor, ...]
POOL: dict[Any, Ladder] = {}


@dataclass(frozen=True)
class Ladder:
    """A recurrence of `decay` and `new`, and the states `before` its steps, `first` among them.

    up     of each level the decays and new parts of first and second steps, and of both as one step
    down   of each level the states that are found, and what they are found from: new parts, decays, states before
    """

    key: Any
    decay: Tensor
    new: Tensor
    before: Tensor
    first: Tensor
    up: tuple[Views, ...]
    few: tuple[Views, Views]
    rest: tuple[Tensor, Tensor] | None
    down: tuple[Views, ...]

    def solve(self, h0: Tensor | None) -> None:
        for a, a2, b, b2, decay, new in self.up:
            torch.mul(a, a2, out=decay)
            torch.addcmul(b2, a2, b, out=new)
        self.first.zero_() if h0 is None else self.first.copy_(h0)
        if self.rest is not None:
            self.rest[0].copy_(self.rest[1])
            chain(*self.few)
        for state, b, a, before in self.down:
            torch.addcmul(b, a, before, out=state)


def ladder(decay: Tensor, new: Tensor, count: int, reverse: bool) -> Ladder:
    """Room for `count` states before steps of this form; a kept one is out of the pool while it is in use."""
    key = (decay.shape, new.shape, count, new.dtype, new.device, reverse)
    found = POOL.pop(key, None)
    if found is None:
        with torch.inference_mode(False):  # tensors of inference mode can be written to in no other
            found = built(key, new.new_empty(decay.shape), new.new_empty(new.shape), count, reverse)
    return found


def put_back(used: Ladder) -> None:
    """Keep it for the next time, unless another stream of a device may still work in it."""
    if used.new.device.type != "cpu":
        return
    POOL[used.key] = used
    if len(POOL) > KEPT:
        POOL.pop(next(iter(POOL)), None)


def built(key: Any, decay: Tensor, new: Tensor, count: int, reverse: bool) -> Ladder:
    whole = before = new.new_empty((count, *new.shape[1:]))
    up, down = [], list[Views]()
    a, b = (begin(x, count - 1, reverse) for x in (decay, new))
    while count > FEW:
        pairs = (count - 1) // 2
        (a, a2), (b, b2), (before, between) = (halves(x, reverse) for x in (a, b, before))
        down.append((between, b, a, begin(before, count // 2, reverse)))
        one = [x.new_empty((pairs, *x.shape[1:])) for x in (a, b)]
        up.append((begin(a, pairs, reverse), a2, begin(b, pairs, reverse), b2, *one))
        (a, b), count = one, pairs + 1
    order = slice(None, None, -1) if reverse else slice(None)
    states, decays = before.unbind(0)[order], a.unbind(0)[order]
    rest = (before[:-1] if reverse else before[1:], b) if count > 1 else None
    few = (states[:1] + decays, states)
    return Ladder(key, decay, new, whole, states[0], tuple(up), few, rest, tuple(reversed(down)))


def halves(x: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Every first and every second step."""
    return (x[(len(x) - 1) % 2 :: 2], x[len(x) % 2 :: 2]) if reverse else (x[::2], x[1::2])


def begin(x: Tensor, count: int, reverse: bool) -> Tensor:
    """The steps that come first."""
    if len(x) == count:
        return x
    return x[len(x) - count :] if reverse else x[:count]


def chain(decays: Views, states: Views) -> None:
    """states[t] += decays[t] * states[t - 1], one after the other; the first decay is not used."""
    if len(states) > 1 and states[0].device.type == "cpu" and in_order():
        torch._foreach_addcmul_(states[1:], decays[1:], states[:-1])
        return
    for decay, before, state in zip(decays[1:], states[:-1], states[1:], strict=True):
        state.addcmul_(decay, before)


@functools.cache
def in_order() -> bool:
    """Whether operators on lists work tensor by tensor on a CPU, as they do but nobody promises: each sees the one before."""
    states = torch.ones(FEW, 64).unbind(0)
    torch._foreach_addcmul_(states[1:], states[:1] * (FEW - 1), states[:-1])
    return states[-1][0].item() == FEW
