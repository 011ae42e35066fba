"""One graph for every length: two graphs of other lengths must be the same but for numbers that grow with the length."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gatec.capture import Call
from gatec.capture.guards import hold
from gatec.capture.structure import flatten, rebuild
from gatec.errors import GatecError, Refused
from gatec.reroll.loops import LEAST
from gatec.reroll.source import steady

NEAR = 2  # steps that a loop may do apart from the others
Again = Callable[[Call], fx.Graph]  # the graph of another call, its loops rolled


@dataclass(frozen=True)
class Grows:
    """A whole number that is the length and `more`."""

    more: int


class Differs(Exception):
    """Two graphs are not the same computation at two lengths."""


def every_length(graph: fx.Graph, call: Call, steps: int, lines: frozenset[str], again: Again) -> str:
    """Lift the guards on the length that its loops run over; what became of them, in words.

    `lines` are those of the loops. Where their source does not show that all steps are alike, however many there are,
    the longest length that was compared stays a guard.
    """
    why = "no size is asked for that its steps are counted by"
    for node in [n for n in graph.nodes if n.target is hold and type(n.args[1]) is int]:
        length = node.args[1]
        if abs(length - steps) > NEAR or not isinstance(node.args[0], fx.Node):
            continue
        try:
            most = _lifted(graph, node, call, length, lines, again)
        except Differs as e:
            why = str(e)
            continue
        return (
            "one graph for every length"
            if most is None
            else f"one graph for every length up to {steps - length + most}"
        )
    return f"a graph for each length ({why})"


def _lifted(
    graph: fx.Graph, decision: fx.Node, call: Call, length: int, lines: frozenset[str], again: Again
) -> int | None:
    """Every number that follows the length is computed from it; nothing is changed unless all of them are."""
    others = (length + 3, max(LEAST + 2, length // 2)) if length > LEAST + 2 else (length + 3, length + 8)
    for other in others:
        twin = _other(graph, call, length, other, again)
        found = list(_compared(graph, twin, length, other))
    order = {n: i for i, n in enumerate(graph.nodes)}
    if any(order[n] < order[decision] and n.target is not hold for n, _, _ in found):
        raise Differs("the length is used before it is asked for")
    asked = [str(decision.args[2]), *(str(n.args[2]) for n, _, _ in found if n.target is hold)]
    most = None if steady(lines, asked) else max(length, *others)
    _write(graph, decision, found, min(length, *others), most)
    return most


def _other(graph: fx.Graph, call: Call, length: int, other: int, again: Again) -> fx.Graph:
    """The graph of the call at another length: all sizes of that length together, or only the first argument's."""
    trouble = "no argument has the length that its steps are counted by"
    for resized in _calls(call, length, other):
        try:
            return again(resized)
        except (Refused, GatecError) as e:
            trouble = f"at the length {other}: {e}"
    raise Differs(trouble)


def _calls(call: Call, length: int, other: int) -> Iterator[Call]:
    """Calls whose sizes follow the length: those of exactly that length first, then those that differ by a few."""
    given = flatten(call.args, call.kwargs).leaves
    for more in sorted(range(-NEAR, NEAR + 1), key=abs):
        places = [(i, d) for i, x in enumerate(given) if isinstance(x, Tensor)
                  for d in range(x.ndim) if x.shape[d] == length + more]  # fmt: skip
        sets = [places, *([p for p in places if p[1] == d] for d in sorted({d for _, d in places}))]
        for chosen in [s for i, s in enumerate(sets) if s and s not in sets[:i]]:
            made = list(given)
            for i, d in chosen:
                turn = torch.arange(other + more, device=made[i].device) % (length + more)
                made[i] = made[i].detach().index_select(d, turn)
            args, kwargs = rebuild((call.args, call.kwargs), iter(made))
            yield Call(args, kwargs)


Found = tuple[fx.Node, Any, Any]


def _compared(graph: fx.Graph, twin: fx.Graph, length: int, other: int) -> Iterator[Found]:
    """(node, its args, its kwargs) with Grows in the place of numbers that follow the length."""
    nodes, twins = list(graph.nodes), list(twin.nodes)
    if len(nodes) != len(twins):
        raise Differs(f"at the length {other} it takes other steps")
    same = dict(zip(twins, nodes, strict=True))

    def both(x: Any, y: Any) -> Any:
        if isinstance(x, fx.Node):
            if not isinstance(y, fx.Node) or same[y] is not x:
                raise Differs(f"at the length {other} something else goes into {node.name}")
            return x
        if isinstance(x, slice) and isinstance(y, slice):
            return slice(both(x.start, y.start), both(x.stop, y.stop), both(x.step, y.step))
        if type(x) is not type(y):
            raise Differs(f"at the length {other} {y!r:.60} stands for {x!r:.60}")
        if isinstance(x, (tuple, list)) and len(x) == len(y):
            items = [both(a, b) for a, b in zip(x, y, strict=True)]
            return type(x)(items) if type(x) in (tuple, list) else x
        if isinstance(x, dict) and x.keys() == y.keys():
            return {k: both(v, y[k]) for k, v in x.items()}
        if x is y or (not isinstance(x, Tensor) and x == y) or _alike(x, y):
            return x
        if type(x) is int and x - length == y - other:
            return Grows(x - length)
        raise Differs(f"{x!r:.60} becomes {y!r:.60} at the length {other} ({node.meta.get('where')})")

    for node, double in zip(nodes, twins, strict=True):
        if node.op != double.op or (node.target != double.target and not _alike(node.target, double.target)):
            raise Differs(f"at the length {other} it takes other steps ({node.meta.get('where')})")
        if node.op == "placeholder":
            continue
        args, kwargs = both(node.args, double.args), both(dict(node.kwargs), dict(double.kwargs))
        if _grows((args, kwargs)):
            yield node, args, kwargs


def _alike(x: Any, y: Any) -> bool:
    """Two objects that a capture made for one thing, such as a class as a value of the graph."""
    return type(x) is type(y) and hasattr(x, "__dict__") and vars(x) == vars(y) and bool(vars(x))


def _grows(value: Any) -> bool:
    return any(isinstance(g, Grows) for g in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    else:
        yield value


def _write(graph: fx.Graph, decision: fx.Node, found: list[Found], least: int, most: int | None) -> None:
    """The length where it was decided, and sums with it; the shortest length that was compared stays a guard."""
    length = decision.args[0]
    assert isinstance(length, fx.Node)
    made: dict[int, fx.Node] = {0: length}

    def number(g: Grows) -> fx.Node:
        if g.more not in made:
            with graph.inserting_before(decision):
                made[g.more] = graph.call_function(operator.add, (length, g.more))
            made[g.more].meta = {**decision.meta, "val": length.meta["val"] + g.more}
        return made[g.more]

    for node, args, kwargs in found:
        if node is not decision:
            node.args, node.kwargs = _filled((args, kwargs), number)
        if node is not decision and node.target is hold:  # another size that is the length, or follows it
            with graph.inserting_before(node):
                value, wanted = node.args[:2]
                _asked(graph, operator.eq, value, wanted, node)
            graph.erase_node(node)
    for compare, bound in ((operator.ge, least), (operator.le, most)):
        if bound is not None:
            with graph.inserting_before(decision):
                _asked(graph, compare, length, bound, decision)
    graph.erase_node(decision)


def _asked(graph: fx.Graph, compare: Any, x: Any, y: Any, decision: fx.Node) -> None:
    """Hold that two sizes compare so; an exporter's symbolic answer is made Python's own first."""
    answer = graph.call_function(compare, (x, y))
    plain = graph.call_function(operator.truth, (answer,))
    for node in (answer, plain):
        node.meta = {**decision.meta, "val": True}
    graph.call_function(hold, (plain, True, decision.args[2])).meta = {**decision.meta, "val": None}


def _filled(value: Any, number: Callable[[Grows], fx.Node]) -> Any:
    if isinstance(value, Grows):
        return number(value)
    if isinstance(value, slice):
        return slice(*(_filled(v, number) for v in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {k: _filled(v, number) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_filled(v, number) for v in value)
    return value
