"""The experts inside the graph of a rewritten module: where rows enter, where they leave, which weights are stacked."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture import Call
from gatec.errors import Refused
from gatec.grouped import grouped_linear
from gatec.parallel.exchange import along, back, evened, held, pick, send, shared
from gatec.parallel.layout import Layout, View, common, layout_of, view
from gatec.tidy import dead


@dataclass
class Exchange:
    """A rewrite of a module whose experts other processes hold; `apart`: every process has tokens of its own."""

    processes: int
    apart: bool
    name: str = "expert_parallel"
    only_fuses: bool = False
    added: dict[str, str] = field(default_factory=dict)

    def __call__(self, module: nn.Module, graph: fx.Graph, call: Call, **_: Any) -> None:
        if not any(n.target is grouped_linear for n in graph.nodes):
            return  # a call that does not come by the experts
        cut = Cut.of(graph)
        layouts, common = cut.layouts, cut.common
        with graph.inserting_before(cut.products[0]):
            one = graph.get_attr(next(iter(layouts)))
            how = (cut.rows, cut.ends, one, layouts[str(one.target)])
            sent = graph.call_function(send if self.apart else pick, how)
            rows, ends, expert, way = (graph.call_function(operator.getitem, (sent, i)) for i in range(4))
        moved = {cut.rows: rows, cut.ends: ends}
        for node in cut.inside:
            for operand in node.all_input_nodes:
                if operand in cut.stacked:
                    moved[operand] = self._held(graph, node, cut.stacked[operand], layouts, operand, expert)
                elif operand in cut.beside and operand not in moved:
                    with graph.inserting_before(node):
                        moved[operand] = graph.call_function(along, (operand, way))
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: moved.get(n, n))
        for node, found in common:
            with graph.inserting_after(node):
                weight = graph.get_attr(found.name)
            with graph.inserting_after(weight):
                whole = graph.call_function(shared, self._how(weight, layouts, found))
            node.replace_all_uses_with(whole)
        if self.apart:
            even(graph, layouts)
        with graph.inserting_after(cut.products[-1]):
            home = graph.call_function(back, (cut.products[-1], way))
        cut.products[-1].replace_all_uses_with(home, delete_user_cb=lambda user: user is not home)
        dead(graph)
        graph.lint()

    def fits(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        """Whatever the edits before it take."""

    def loads(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        """Shards are loaded as they are."""

    def _held(self, graph: fx.Graph, before: fx.Node, value: fx.Node, layouts: dict[str, Layout], operand: fx.Node,
              expert: fx.Node) -> fx.Node:  # fmt: skip
        """A stacked operand as this process has it; one row of it for each token, where it was indexed so."""
        found = view(value)
        with graph.inserting_before(before):
            own = graph.call_function(held, self._how(graph.get_attr(found.name), layouts, found))
            return own if operand is value else graph.call_function(operator.getitem, (own, expert))

    def _how(self, weight: fx.Node, layouts: dict[str, Layout], found: View) -> tuple[Any, ...]:
        layout = layouts[found.name]
        return (
            weight,
            layout,
            found.first // (found.size // layout.parts),
            found.last,
            1 / self.processes if self.apart else 1.0,
        )


def even(graph: fx.Graph, sharded: dict[str, Layout]) -> None:
    """Parameters of the module that every process has get the mean of the processes' gradients, as the experts do."""
    for node in [n for n in graph.nodes if n.op == "get_attr" and n.target not in sharded]:
        with graph.inserting_after(node):
            holder = graph.get_attr(next(iter(sharded)))
        with graph.inserting_after(holder):
            mean = graph.call_function(evened, (node, holder))
        node.replace_all_uses_with(mean, delete_user_cb=lambda user, mean=mean: user is not mean)


@dataclass
class Cut:
    """rows, ends   what enters the experts
    products     their grouped products, in order; the last one leaves
    inside       the nodes that compute on sorted rows
    stacked      operands of those by the [E, ...] value that they are, or take rows of
    beside       operands with a row for each row, which go where it goes
    """

    rows: fx.Node
    ends: fx.Node
    products: list[fx.Node]
    inside: list[fx.Node]
    stacked: dict[fx.Node, fx.Node]
    beside: set[fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph) -> Cut:
        products = [n for n in graph.nodes if n.target is grouped_linear]
        below = _reached(graph, products)
        first = [n for n in products if n.args[0] not in below]
        if len({n.args[0] for n in first}) > 1 or len({n.args[2] for n in products}) > 1:
            raise Refused("its experts are not all given the same rows")
        above = _leading(products[-1])
        if any(n not in above and n is not products[-1] for n in products):
            raise Refused("its experts have more than one result")
        inside = [n for n in graph.nodes if n in below and (n in above or n is products[-1])]
        rows, ends = (_node(products[0].args[i]) for i in (0, 2))
        outside = {o for n in inside for o in n.all_input_nodes} - {*inside, rows, ends}
        beside = {o for o in outside if _beside(o, rows)} & _reached(graph, _inputs(graph))
        stacked = dict(_stacked(graph, inside, rows, ends))
        return cls(rows, ends, products, inside, stacked, beside - {*stacked})

    @property
    def layouts(self) -> dict[str, Layout]:
        """The parameters that hold the experts, and how."""
        views: dict[str, set[View]] = {}
        for value in self.stacked.values():
            found = view(value)
            views.setdefault(found.name, set()).add(found)
        layouts = {name: layout_of(found) for name, found in views.items()}
        if len({(v.blocks, v.shared) for v in layouts.values()}) > 1:
            raise Refused("its layers do not have the same number of blocks")
        return layouts

    @property
    def common(self) -> list[tuple[fx.Node, View]]:
        """What is read of these parameters for every token: the experts that all share."""
        layouts, inside = self.layouts, _leading(*self.stacked.values())
        nodes = [n for n in self.rows.graph.nodes if n.op == "get_attr" and n.target in layouts and n.users]
        return [common(n, layouts[str(n.target)]) for n in nodes if n not in inside]


def _stacked(graph: fx.Graph, inside: list[fx.Node], rows: fx.Node, ends: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    tokens = _reached(graph, _inputs(graph))
    for node in inside:
        for operand in node.all_input_nodes:
            if operand in inside or operand in (rows, ends):
                continue
            if operand not in tokens and node.target is grouped_linear:
                yield operand, operand
            elif operand in tokens and operand.target is operator.getitem and operand.args[0] not in tokens:
                yield operand, _node(operand.args[0])
            elif operand not in tokens or not _beside(operand, rows):
                raise Refused(f"its experts read {operand.name}, which does not belong to one expert")


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def _beside(value: fx.Node, rows: fx.Node) -> bool:
    """Whether a value has a row for each of these rows."""
    mine, other = value.meta.get("val"), rows.meta["val"]
    return isinstance(mine, Tensor) and mine.ndim == other.ndim and mine.shape[0] == other.shape[0]


def _reached(graph: fx.Graph, start: list[fx.Node]) -> set[fx.Node]:
    """These nodes and all that is computed from them."""
    found = set(start)
    for node in graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _leading(*nodes: fx.Node) -> set[fx.Node]:
    """All that nodes are computed from."""
    found: set[fx.Node] = set()
    waiting = [*nodes]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting.extend(new)
    return found


def _node(value: Any) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise Refused("its experts are given a constant")
    return value
