"""Views move in front of the pointwise work behind them: a kernel reads its operands through their strides.

    sigmoid(g)[:, :, None, None] * x  ->  sigmoid(g[:, :, None, None]) * x

An expansion that broadcasting repeats is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.recognise import Find
from gatec.regions.nodes import called, pointwise
from gatec.regions.surroundings import Surroundings
from gatec.tidy import example

ALIGNED = {"unsqueeze", "permute", "transpose", "swapaxes", "squeeze"}  # for operands of size one as well
RESHAPES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"}
EXPANDS = {"expand", "expand_as", "broadcast_to"}
INDICES = (int, slice, type(None), type(Ellipsis))


class Hoisting:
    """One graph, changed in place; `moved` says which nodes stand for which."""

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.around, self.module = Surroundings.of(graph, module), module
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.moved: dict[fx.Node, fx.Node] = {}

    def before(self, end: fx.Node) -> None:
        """What `end` is computed from by pointwise work that nobody else reads."""
        asked, seen = list(end.all_input_nodes), {end}
        while asked:
            node = asked.pop()
            if node in seen or node._erased or any(u not in seen for u in node.users):
                continue
            node = self.put(node)
            seen.add(node)
            if pointwise(node):
                asked.extend(node.all_input_nodes)

    def put(self, view: fx.Node) -> fx.Node:
        """The node that gives the value of a view: the view itself, where nothing is gained."""
        source = view.args[0] if view.args else None
        if view.op not in ("call_function", "call_method") or not isinstance(source, fx.Node):
            return view
        if called(view) in EXPANDS and _repeats(view) and all(_broadcasts(u, view, source) for u in view.users):
            return self._instead(view, source)
        single = len(source.users) == 1 and pointwise(source) and self.around.waits(source, view)
        return self._swapped(view, source) if single and _moves(view) and _shown(view, source) else view

    def _instead(self, view: fx.Node, other: fx.Node) -> fx.Node:
        view.replace_all_uses_with(other)
        view.graph.erase_node(view)
        return other

    def _swapped(self, view: fx.Node, source: fx.Node) -> fx.Node:
        whole, known = source.meta["val"].shape, dict[fx.Node, fx.Node]()
        full = _full(source)
        with view.graph.inserting_before(view):
            for operand in source.all_input_nodes:
                value = operand.meta.get("val")
                if isinstance(value, Tensor) and value.dim():
                    known[operand] = self._through(view, operand, full, value.shape, whole)
            new = view.graph.node_copy(source, lambda a: known.get(a, a))
        new.meta = {**source.meta, "val": view.meta["val"]}
        self.around.place[new] = self.around.place[view]
        self._instead(view, new)
        view.graph.erase_node(source)
        self.moved[source] = new
        return new

    def _through(self, view: fx.Node, operand: fx.Node, full: fx.Node | None, size: Sequence[int],
                 whole: Sequence[int]) -> fx.Node:  # fmt: skip
        """What the view shows of an operand that broadcasts to `whole`, the size of `full`."""
        graph, seen = view.graph, operand
        if size != whole and not _aligned(view):
            seen = self._made(graph.call_method("expand_as", (operand, full)), view)
        elif len(size) < len(whole):
            index: Any = (*(None,) * (len(whole) - len(size)), Ellipsis)
            seen = self._made(graph.call_function(operator.getitem, (operand, index)), view)
        return self._made(graph.node_copy(view, lambda a: seen if a is view.args[0] else a), view)

    def _made(self, node: fx.Node, view: fx.Node) -> fx.Node:
        node.meta = {"val": example(self.module, node, self.mode)}
        self.around.place[node] = self.around.place[view]
        return node


def hoisted(found: Iterable[Find], graph: fx.Graph, module: nn.Module) -> dict[fx.Node, fx.Node]:
    """In place, in front of every gate; which nodes stand for which."""
    hoisting = Hoisting(graph, module)
    for find in found:
        hoisting.before(_last(find.node, hoisting.moved))
    return {node: _last(node, hoisting.moved) for node in hoisting.moved}


def _last(node: fx.Node, moved: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in moved:
        node = moved[node]
    return node


def _aligned(view: fx.Node) -> bool:
    return called(view) in ALIGNED or _indexed(view, (slice(None), None, Ellipsis))


def _full(source: fx.Node) -> fx.Node | None:
    """An operand as large as the result, from which others can take their size in every call."""
    whole = source.meta["val"].shape
    values = {n: n.meta.get("val") for n in source.all_input_nodes}
    return next((n for n, v in values.items() if isinstance(v, Tensor) and v.shape == whole), None)


def _shown(view: fx.Node, source: fx.Node) -> bool:
    return _aligned(view) or _full(source) is not None


def _repeats(view: fx.Node) -> bool:
    """Whether an expansion expands in every call where it does here: a size that is one here may be more elsewhere."""
    sizes, given = view.meta["val"].shape, view.args[1:]
    given = tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    fixed = [type(n) is int for n in given] if len(given) == len(sizes) else [False] * len(sizes)
    return all(known or n > 1 for known, n in zip(fixed, sizes, strict=True))


def _moves(view: fx.Node) -> bool:
    """Whether what is in front of the view can be seen through it, without a copy."""
    if not isinstance(view.meta.get("val"), Tensor):
        return False
    if called(view) in RESHAPES:
        before, after = (n.meta["val"].shape for n in (view.args[0], view))  # type: ignore[union-attr]
        return [n for n in before if n != 1] == [n for n in after if n != 1]
    return called(view) in ALIGNED or _indexed(view, INDICES)


def _indexed(view: fx.Node, kinds: Sequence[Any]) -> bool:
    """Whether a node takes a part of a tensor by indices of these kinds, or by these very ones."""
    if view.target is not operator.getitem:
        return False
    index = view.args[1] if isinstance(view.args[1], tuple) else (view.args[1],)
    types = [k for k in kinds if isinstance(k, type)]
    return all(isinstance(i, tuple(types)) or (not types and i in kinds) for i in index)


def _broadcasts(user: fx.Node, view: fx.Node, source: fx.Node) -> bool:
    """Whether a pointwise node gives the same for the source as for its expansion."""
    values = [a.meta.get("val") for a in user.all_input_nodes if a is not view]
    shapes = [v.shape for v in (*values, source.meta.get("val")) if isinstance(v, Tensor)]
    return pointwise(user) and torch.broadcast_shapes(*shapes) == user.meta["val"].shape
