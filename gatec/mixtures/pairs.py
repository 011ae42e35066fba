"""Pairs of a token and an expert: how a graph puts them in order, and how many of them each expert has."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from gatec.mixtures.reading import (
    FLAT,
    called,
    counted,
    flat_of,
    given,
    looked_up,
    name_of,
    number,
    shape,
    through,
    wants,
)


@dataclass(frozen=True)
class Pairs:
    """`chosen` [tokens, fan] as one row of numbers is `flat`; `order` sorts it, or they stay as they are."""

    chosen: Any
    flat: Any
    order: Any = None

    @property
    def fan(self) -> int:
        return int(shape(self.chosen)[-1])

    def tokens(self, rows: Any) -> Any:
        """The values of tokens that these are, one for each pair."""
        rows = through(rows)
        if self.order is None:
            found = called(rows, "repeat_interleave")
            wants(number(given(found, 1, "repeats")) == self.fan and number(given(found, 2, "dim")) == 0)
            return found.args[0]
        x, token = looked_up(rows)
        wants(called(token, "floordiv", "floor_divide").args[0] is self.order and number(token.args[1]) == self.fan)
        return x

    def own(self, value: Any) -> Any:
        """Numbers for each token's choices that are here in the order of the pairs."""
        if self.order is not None:
            value, index = looked_up(value)
            wants(index is self.order)
        found = flat_of(value)
        wants(shape(found) == shape(self.chosen))
        return found

    def expert(self, node: Any) -> bool:
        """Whether a node says which expert each pair has, in the order of the pairs."""
        if self.order is None or name_of(node) != "getitem":
            return self.order is None and node is self.flat
        source, index = node.args
        sort = self.order.args[0] if name_of(self.order) == "getitem" else None
        return bool(
            (source is self.flat and index is self.order) or (sort is not None and source is sort and index == 0)
        )


def sorted_pairs(order: Any) -> Pairs:
    """By the numbers that sort them: from a sort or an argsort of what was chosen, in rising order."""
    if name_of(order) == "getitem":
        wants(order.args[1] == 1)
        sort = called(order.args[0], "sort")
    else:
        sort = called(order, "argsort")
    flat = sort.args[0]
    wants(not sort.kwargs.get("descending") and len(sort.args) == 1 and sort.kwargs.get("dim", -1) in (-1, 0))
    return Pairs(flat_of(flat), flat, order)


def inverted(back: Any) -> Any:
    """The order that these numbers undo."""
    if name_of(back) == "argsort":
        wants(len(back.args) == 1 and not back.kwargs.get("descending"))
        return back.args[0]
    called(back, "empty_like", "empty", "zeros_like", "new_empty")
    written = [u for u in back.users if u.target is operator.setitem]
    wants(len(written) == 1 and written[0].args[0] is back)
    order, numbers = written[0].args[1:]
    arange = called(numbers, "arange")
    wants(len(arange.args) == 1 and number(arange.args[0]) == shape(order)[0])
    return order


def ends_of(ends: Any, pairs: Pairs) -> int:
    """How many experts there are, if these numbers say where the pairs of each of them end."""
    found = counted(ends)
    if name_of(found) == "cumsum":
        wants(number(given(found, 1, "dim")) in (0, -1))
        return _counts(counted(found.args[0]), pairs)
    return _rising(found, pairs)


def _counts(counts: Any, pairs: Pairs) -> int:
    """Of a count of each expert's pairs."""
    if name_of(counts) == "sum":
        wants(number(given(counts, 1, "dim")) == 0)
        counts = called(counted(counts.args[0]), "one_hot")
    which = counted(called(counts, "histc", "bincount", "one_hot").args[0])
    wants(which is pairs.flat or which is pairs.chosen or pairs.expert(which) or _flattened(which, pairs))
    if name_of(counts) == "one_hot":
        return int(number(given(counts, 1, "num_classes", default=-1)))
    if name_of(counts) == "bincount":
        return int(number(given(counts, 2, "minlength", default=0)))
    bins, low, high = (number(given(counts, i, n)) for i, n in ((1, "bins"), (2, "min"), (3, "max")))
    wants(low == 0 and high == bins - 1)
    return int(bins)


def _flattened(node: Any, pairs: Pairs) -> bool:
    return name_of(node) in FLAT and node.args[0] is pairs.chosen


def _rising(ends: Any, pairs: Pairs) -> int:
    """Of how many sorted experts are at most 0, 1, 2, ..."""
    below = called(called(ends, "sum").args[0], "le")
    wants(given(ends, 1, "dim") == 0)
    expert = called(below.args[0], "unsqueeze")
    numbers = called(called(below.args[1], "sub").args[0], "cumsum")
    wants(below.args[1].args[1] == 1 and expert.args[1] == -1 and pairs.expert(expert.args[0]))
    ones: fx.Node = called(numbers.args[0], "new_ones")
    return int(shape(ones)[0])
