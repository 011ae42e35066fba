"""What a step takes at its own place of a tensor, taken for all steps at once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from gatec.errors import Refused
from gatec.reroll.loops import Count, Same
from gatec.reroll.maker import Maker


def counts(index: Any) -> bool:
    """Whether an index moves with the steps."""
    items = index if isinstance(index, tuple) else (index,)
    parts = [p for i in items for p in ((i.start, i.stop, i.step) if isinstance(i, slice) else (i,))]
    return any(isinstance(p, Count) for p in parts)


def span(count: Count, steps: int) -> slice:
    """The places of all steps, from the lowest up."""
    low = min(count.first, count.first + count.by * (steps - 1))
    high = max(count.first, count.first + count.by * (steps - 1)) + 1
    by = abs(count.by)
    return slice(low, None if low < 0 and high == 0 else high, None if by == 1 else by)


class Taken:
    """An index with one part that moves: the same for all steps, and where their dimension is in what it finds."""

    def __init__(self, rank: int, index: Any, steps: int) -> None:
        items = list(index) if isinstance(index, tuple) else [index]
        moving = [i for i, item in enumerate(items) if counts(item)]
        if len(moving) != 1:
            raise Refused("several parts of an index move with the steps")
        self.width = 0
        at = moving[0]
        count = items[at]
        if isinstance(count, slice):
            count = self._window(count)
        self.up = count.by > 0
        plain = [_plain(item) for i, item in enumerate(items) if i != at]
        if any(not isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in plain):
            raise Refused("it is indexed by values")
        taking = [i for i in plain if i is not None and i is not Ellipsis]
        whole = span(count, steps)
        if self.width > 1:
            whole = slice(whole.start, count.first + count.by * (steps - 1) + self.width)
        self.index: tuple[Any, ...] = (*plain[:at], whole, *plain[at:])
        spread = rank - len(taking) - 1
        self.dim = sum(spread if i is Ellipsis else not isinstance(i, int) for i in plain[:at])
        found = sum(not isinstance(i, int) for i in plain if i is not Ellipsis) + (spread if Ellipsis in plain else 0)
        tail = 0 if Ellipsis in plain else spread
        self.rank = found + tail + (self.width > 0)  # of what one step finds

    def _window(self, part: slice) -> Count:
        start, stop = part.start, part.stop
        step = part.step.value if isinstance(part.step, Same) else part.step
        if step not in (None, 1) or not (isinstance(start, Count) and isinstance(stop, Count)) or start.by != stop.by:
            raise Refused("it reads a window that grows with the steps")
        self.width = stop.first - start.first
        if self.width < 1 or (self.width > 1 and start.by != self.width):
            raise Refused("it reads windows that overlap")
        return start


def _plain(item: Any) -> Any:
    if isinstance(item, slice):
        return slice(*(p.value if isinstance(p, Same) else p for p in (item.start, item.stop, item.step)))
    return item.value if isinstance(item, Same) else item


def read(maker: Maker, base: fx.Node, index: Any, steps: int, down: bool) -> fx.Node:
    """All steps' `base[index]`, in front of everything else, from the lowest index up unless the loop mixes directions."""
    if not isinstance(base.meta.get("val"), Tensor):
        base, index = _stacked(maker, base), (index,)
    taken = Taken(base.meta["val"].ndim, index, steps)
    out = maker.make(operator.getitem, base, taken.index)
    if taken.width > 1:
        out = maker.make("unflatten", out, taken.dim, (steps, taken.width))
    elif taken.width == 1:
        out = maker.make("unsqueeze", out, taken.dim + 1)
    out = maker.make("movedim", out, taken.dim, 0) if taken.dim else out
    return out if taken.up != down else maker.make("flip", out, 0)


def _stacked(maker: Maker, items: fx.Node) -> fx.Node:
    """The parts that unbind, split or chunk made, as one tensor again."""
    if items.target in ("unbind", torch.unbind):
        dim = items.kwargs.get("dim", items.args[1] if len(items.args) > 1 else 0)
        return maker.make("movedim", items.args[0], dim, 0, rolled=False)
    return maker.make(torch.stack, items, rolled=False)


def write(maker: Maker, base: fx.Node, index: Any, value: Any, steps: int, down: bool) -> None:
    """`base[index] = value` of all steps at once; `value` is rolled, or the same for all."""
    taken = Taken(base.meta["val"].ndim, index, steps)
    if value in maker.rolled:
        value = maker.raised(value, taken.rank)
        value = value if taken.up != down else maker.make("flip", value, 0)
        value = maker.make("movedim", value, 0, taken.dim) if taken.dim else value
        if taken.width:
            value = maker.make("flatten", value, taken.dim, taken.dim + 1)
    maker.make(operator.setitem, base, taken.index, value, rolled=False)
