"""Python loops in a captured graph: stretches of nodes that repeat, and how each step hangs together with the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from gatec.errors import Refused

LEAST = 4  # steps of a loop
LONGEST = 256  # nodes of one step
QUIET = {"getitem", "getattr", "size", "dim", "len", "select", "unbind", "chunk", "split"}


@dataclass(frozen=True)
class Same:
    """The same in every step: a constant, or a value from outside of the loop."""

    value: Any


@dataclass(frozen=True)
class Local:
    """What the same step has computed."""

    offset: int


@dataclass(frozen=True)
class Carry:
    """What the step before has computed; `first` is what the first step finds there."""

    offset: int
    first: fx.Node


@dataclass(frozen=True)
class Count:
    """A whole number that grows by `by` with every step."""

    first: int
    by: int


@dataclass(frozen=True)
class Each:
    """Another value from outside in every step."""

    nodes: tuple[fx.Node, ...]


class Loop:
    """`steps[t][offset]` are the nodes; `args(offset)` is what that node is given, over all steps."""

    def __init__(self, steps: Sequence[Sequence[fx.Node]]) -> None:
        self.steps = steps
        self.place = {node: (t, j) for t, step in enumerate(steps) for j, node in enumerate(step)}

    def __len__(self) -> int:
        return len(self.steps)

    def node(self, offset: int) -> fx.Node:
        """One step's node, to be asked about what all have in common."""
        return self.steps[-1][offset]

    @cached_property
    def lines(self) -> frozenset[str]:
        return frozenset(str(n.meta.get("where")) for n in self.steps[-1])

    @cached_property
    def arguments(self) -> list[tuple[Any, Any]]:
        """The positional and the keyword arguments of each offset."""
        return [self._given(nodes) for nodes in zip(*self.steps, strict=True)]

    @cached_property
    def links(self) -> list[tuple[int, int, bool]]:
        """(offset, the offset that reads it, whether one step later)."""
        pairs = [(k, j) for j, args in enumerate(self.arguments) for k in leaves(args)]
        return [(k.offset, j, isinstance(k, Carry)) for k, j in pairs if isinstance(k, (Local, Carry))]

    def _given(self, nodes: Sequence[fx.Node]) -> tuple[Any, Any]:
        try:
            return self._column([n.args for n in nodes]), self._column([dict(n.kwargs) for n in nodes])
        except Refused as e:
            raise Refused(f"{e} ({nodes[-1].meta.get('where')})") from None

    def _column(self, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, fx.Node):
            return self._nodes(values)
        if isinstance(first, slice):
            return slice(*(self._column([getattr(v, n) for v in values]) for n in ("start", "stop", "step")))
        if isinstance(first, (tuple, list)):
            return type(first)(self._column(list(items)) for items in zip(*values, strict=True))
        if isinstance(first, dict):
            return {k: self._column([v[k] for v in values]) for k in first}
        if type(first) is int:
            by = values[1] - first
            if any(v != first + t * by for t, v in enumerate(values)):
                found = ", ".join(map(str, values[:5]))
                raise Refused(f"a number in it is not one step further each time: {found} ...")
            return Count(first, by) if by else Same(first)
        return Same(first)

    def _nodes(self, nodes: list[fx.Node]) -> Any:
        places = [self.place.get(n) for n in nodes]
        if all(p is None for p in places):
            return Same(nodes[0]) if all(n is nodes[0] for n in nodes) else Each(tuple(nodes))
        last = places[-1]
        if last is not None:
            if all(p == (t, last[1]) for t, p in enumerate(places)):
                return Local(last[1])
            if places[0] is None and all(p == (t, last[1]) for t, p in enumerate(places[1:])):
                return Carry(last[1], nodes[0])
        raise Refused("its steps do not hang together in the same way")


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def loops(graph: fx.Graph) -> list[Loop]:
    """What repeats at least LEAST times in a row, from front to back; the shortest step wins."""
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    known: dict[Any, int] = {}
    kinds = np.array([known.setdefault(_kind(n), len(known)) for n in nodes])
    free = np.ones(len(nodes), dtype=bool)
    found = []
    for start, size, count in sorted(_repeats(kinds), key=lambda r: (-r[1] * r[2], r[1])):
        stretch = slice(start, start + size * count)
        if free[stretch].all():
            free[stretch] = False
            found.append((start, [nodes[start + t * size : start + (t + 1) * size] for t in range(count)]))
    return [Loop(steps) for _, steps in sorted(found, key=lambda f: f[0]) if _works(steps[0])]


def _repeats(kinds: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(start, nodes of a step, steps), aligned at the end: the first step of a loop is often like no other."""
    for size in range(1, min(LONGEST, len(kinds) // LEAST) + 1):
        same = np.concatenate([[False], kinds[size:] == kinds[:-size], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            count = (end - start + size) // size
            if count >= LEAST:
                yield int(end + size - count * size), size, int(count)


def _works(step: Sequence[fx.Node]) -> bool:
    """Whether a step computes anything, and does not only take things apart."""
    return any(str(getattr(n.target, "__name__", n.target)) not in QUIET for n in step)


def _kind(node: fx.Node) -> Any:
    """What nodes at one place of different steps have in common."""
    return node.op, node.target, node.meta.get("where"), _form(node.args), _form(node.kwargs)


def _form(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return "%"
    if isinstance(value, slice):
        return "slice", _form(value.start), _form(value.stop), _form(value.step)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_form, value))
    if isinstance(value, dict):
        return tuple((k, _form(v)) for k, v in value.items())
    return "#" if type(value) is int else repr(value)
