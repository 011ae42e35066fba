"""Short recurrences h[t] = a[t] * h[t-1] + b[t] in memory of their own, whose views are made once and used again.

On a CPU a short recurrence takes as long as its operators take to call, and a view half as long as an operator.
Operators on lists of tensors are one call for all of them; on a CPU the tensors follow each other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 8  # steps that are reduced to one
KEPT = 8  # levels that are kept for the next recurrence of their form
Views = tuple[Tensor, ...]
POOL: dict[Any, Level] = {}


@dataclass(frozen=True)
class Level:
    """A recurrence of `decay` and `new`: its states, and the states `before` each step. Solving it changes `new`.

    decays, news, states    views of all steps; where there is a level above, of the same step in every group
    rest                    decays and states from the end of the last whole group on
    """

    key: Any
    decay: Tensor
    new: Tensor
    first: Tensor
    before: Tensor
    after: Tensor
    decays: Views
    news: Views
    states: Views
    rest: tuple[Views, Views] = ((), ())
    above: Level | None = None

    def solve(self, h0: Tensor | None) -> None:
        self.first.zero_() if h0 is None else self.first.copy_(h0)
        self.after.copy_(self.new)
        before = self.first
        if self.above is not None:
            torch.mul(self.decays[0], self.decays[1], out=self.above.decay)
            multiply(self.above.decay, self.decays[2:])
            chain(self.decays, self.news)
            self.above.solve(h0)
            before = self.above.before
        self.states[0].addcmul_(self.decays[0], before)
        chain(self.decays, self.states)
        if self.rest[0]:
            chain(*self.rest)


def level(decay: Tensor, new: Tensor, reverse: bool) -> Level:
    """Room for a recurrence whose operands have these forms; a kept one is out of the pool while it is in use."""
    key = (decay.shape, new.shape, new.dtype, new.device, reverse)
    found = POOL.pop(key, None)
    if found is None:
        with torch.inference_mode(False):  # tensors of inference mode can be written to in no other
            found = built(key, new.new_empty(decay.shape), new.new_empty(new.shape), reverse)
    return found


def put_back(level: Level) -> None:
    """Keep it for the next time, unless another stream of a device may still work in it."""
    if level.new.device.type != "cpu":
        return
    POOL[level.key] = level
    if len(POOL) > KEPT:
        POOL.pop(next(iter(POOL)), None)


def built(key: Any, decay: Tensor, new: Tensor, reverse: bool) -> Level:
    steps = len(new)
    edge = new.new_empty((steps + 1, *new.shape[1:]))
    first, before, after = (edge[-1], edge[1:], edge[:-1]) if reverse else (edge[0], edge[:-1], edge[1:])
    order = slice(None, None, -1) if reverse else slice(None)
    parts = decay, new, after
    decays, news, states = (x.unbind(0)[order] for x in parts)
    if steps < 4 * GROUP:
        return Level(key, decay, new, first, before, after, decays, news, states)
    whole = steps - steps % GROUP
    rest = decays[whole - 1 :], states[whole - 1 :]
    span = slice(steps - whole, None) if reverse else slice(whole)
    decays, news, states = (x[span].unflatten(0, (whole // GROUP, GROUP)).unbind(1)[order] for x in parts)
    above = built(None, new.new_empty(decays[0].shape), news[-1], reverse)
    return Level(key, decay, new, first, before, after, decays, news, states, rest, above)


# -- operators on lists ------------------------------------------------------------------------------------------------


def chain(decays: Views, states: Views) -> None:
    """states[t] += decays[t] * states[t - 1], one after the other."""
    if len(states) > 1 and states[0].device.type == "cpu" and in_order():
        torch._foreach_addcmul_(states[1:], decays[1:], states[:-1])
        return
    for decay, before, state in zip(decays[1:], states[:-1], states[1:], strict=True):
        state.addcmul_(decay, before)


def multiply(product: Tensor, factors: Views) -> None:
    if product.device.type == "cpu" and in_order():
        torch._foreach_mul_([product] * len(factors), factors)
        return
    for factor in factors:
        product.mul_(factor)


@functools.cache
def in_order() -> bool:
    """Whether operators on lists work tensor by tensor on a CPU, as they do but nobody promises: each sees the one before."""
    states = torch.ones(GROUP, 64).unbind(0)
    torch._foreach_addcmul_(states[1:], states[:1] * (GROUP - 1), states[:-1])
    return states[-1][0].item() == GROUP
