"""A mixture of experts as a region: what it stands on, and where in a graph there is one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.capture.guards import hold
from gatec.kernels.grouped import Experts, Matrix
from gatec.mixtures.pairs import Pairs, inverted, sorted_pairs
from gatec.mixtures.products import Half, Product, half, product
from gatec.mixtures.reading import (
    Unlike,
    called,
    column,
    flat_of,
    given,
    looked_up,
    name_of,
    number,
    shape,
    through,
    wants,
)
from gatec.recognise import Find
from gatec.regions import Region, Surroundings

SUMMED = ("view", "reshape", "unflatten")


@dataclass(frozen=True)
class Mixture(Region):
    """`inner` is the function between the first and the last products; inputs are in the order of `plan`'s operands."""

    inner: Region
    plan: Experts
    moved: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        down, chosen = self.inputs[self.plan.operands.index("down")], self.inputs[1]
        return f"experts_{shape(chosen)[-1]}_of_{shape(down)[0]}_{super().name}"

    @property
    def anchor(self) -> str:
        return "mixture"

    @property
    def key(self) -> tuple[Any, ...]:
        return *super().key, self.plan

    @property
    def typed(self) -> Region:
        """Its products have one type, which is seen to; its function is a region like any other."""
        return self.inner

    @property
    def within(self) -> tuple[fx.Node, ...]:
        return self.moved

    @property
    def launches(self) -> int:
        """The sort, the first products, the last one, and the sum over a token's pairs where there are several."""
        return 3 + (shape(self.inputs[1])[-1] > 1)

    def graph(self) -> fx.Graph:
        """On the device of its operands, wherever it was captured."""
        graph = super().graph()
        first = next(iter(graph.nodes))
        for node in list(graph.nodes):
            if isinstance(node.kwargs.get("device"), torch.device):
                with graph.inserting_before(node):
                    device = graph.call_function(getattr, (first, "device"))
                node.kwargs = {**node.kwargs, "device": device}
        return graph


def mixtures(found: Sequence[Find], graph: fx.Graph, module: nn.Module) -> Iterator[Mixture]:
    """Every mixture in a graph that has a gate inside; its name is that of the gate nearest to its experts."""
    sums = [n for n in graph.nodes if name_of(n) == "sum"]
    around = Surroundings.of(graph, module) if sums else None
    for end in sums:
        try:
            assert around is not None
            mixture = _mixture(end, found, around)
        except (Unlike, AttributeError, IndexError, KeyError, TypeError, ValueError):
            continue
        yield mixture


def _mixture(end: fx.Node, found: Sequence[Find], around: Surroundings) -> Mixture:
    pairs, scale, last, placed = _behind(end)
    halves, inner = _inside(last, pairs)
    xs = {pairs.tokens(h.product.rows) for h in halves}
    plan, operands = _plan(halves, last)
    inputs = (*xs, pairs.chosen, scale, *operands)
    wants(len(xs) == 1 and len(shape(inputs[0])) == 2 and _alike(inputs, halves, last))
    nodes = _closed(end, set(inputs), around)
    inside = sorted((f for f in found if f.node in nodes), key=lambda f: f.node not in inner)
    wants(inside, "no gate inside")
    hidden = Region(inside[0], tuple(n for n in nodes if n in inner), tuple(h.node for h in halves))
    return Mixture(inside[0], nodes, inputs, hidden, plan, (last.rows, placed))


def _behind(end: fx.Node) -> tuple[Pairs, Any, Product, Any]:
    """The pairs whose results are summed up, what weighs them, and the last product."""
    dim = given(end, 1, "dim")
    wants(number(dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim) == 1 and len(shape(end)) == 2)
    wants(not given(end, 2, "keepdim", default=False) and given(end, 3, "dtype") is None)
    apart = called(end.args[0], *SUMMED)
    placed = through(apart.args[0])
    tokens, fan, width = shape(apart)
    wants(shape(placed) == (tokens * fan, width) and (tokens != fan or name_of(apart) == "unflatten"))
    order, weighted = None, placed
    if name_of(placed) in ("getitem", "index_select"):
        weighted, back = looked_up(placed)
        order = inverted(back)
    pairs, scale, last = _weighed(weighted, order)
    wants(pairs.fan == fan)
    return pairs, scale, last, placed


def _weighed(rows: Any, order: Any) -> tuple[Pairs, Any, Product]:
    """The pairs, what weighs them and the last product, behind which they are weighed, or in front if it has no bias."""
    if name_of(rows) == "mul":
        value, scale = _scaled(rows)
        pairs = sorted_pairs(order) if order is not None else _as_they_are(value)
        return pairs, pairs.own(scale), product(value, pairs)
    pairs = sorted_pairs(order) if order is not None else _as_they_are(rows)
    last = product(rows, pairs)
    wants(last.bias is None, "a bias behind what weighs the pairs")
    value, scale = _scaled(called(last.rows, "mul"))
    return pairs, pairs.own(scale), replace(last, rows=value)


def _scaled(node: Any) -> tuple[Any, Any]:
    """(rows, the number that each is multiplied by)"""
    factors = called(node, "mul").args
    value, factor = factors if shape(factors[1])[-1] == 1 else factors[::-1]
    return value, column(factor)


def _as_they_are(value: Any) -> Pairs:
    """The pairs by which a batch of matrices was looked up."""
    asked, seen = [through(value)], 0
    while asked and (seen := seen + 1) < 8:
        node = asked.pop(0)
        if name_of(node) in ("bmm", "matmul"):
            looked = next(a for a in node.args if name_of(a) == "getitem")
            return Pairs(flat_of(looked.args[1]), looked.args[1])
        asked += [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)]
    raise Unlike("no matrices looked up")


def _inside(last: Product, pairs: Pairs) -> tuple[list[Half], set[fx.Node]]:
    """From the hidden values back to the first products: these, and the nodes between."""
    halves: dict[fx.Node, Half] = {}
    inner, asked = set[fx.Node](), [last.rows]
    while asked:
        node = asked.pop()
        if node in inner or node in halves:
            continue
        try:
            halves[node] = half(node, pairs)
        except (Unlike, AttributeError, IndexError):
            wants(name_of(node))
            inner.add(node)
            asked.extend(reversed(node.all_input_nodes))
    wants(halves and inner, "nothing between the products")
    return list(halves.values()), inner


def _plan(halves: Sequence[Half], last: Product) -> tuple[Experts, list[Any]]:
    """The matrices as they lie in the operands, and the operands."""
    products = list(dict.fromkeys(h.product for h in halves))
    width = shape(last.weight)[1 if last.turned else 2]
    wants(all(_width(h) == width for h in halves))
    wants(len({p.bias is None for p in products}) == 1)
    for p in products:
        # Every column of a matrix once: what nobody reads would have no gradient.
        read = [i for h in halves if h.product == p for i in range(*(h.rows or (0, p.width, 1)))]
        wants(sorted(read) == list(range(p.width)))
    names = {p.weight: f"weight{i}" for i, p in enumerate(products)}
    biases = {p.bias: f"bias{i}" for i, p in enumerate(products) if p.bias is not None}
    wants(len(names) == len(products) and len(biases) in (0, len(products)))
    matrices = (Matrix(names[h.product.weight], biases.get(h.product.bias), h.rows, h.product.turned) for h in halves)
    plan = Experts(tuple(matrices), Matrix("down", None if last.bias is None else "down_bias", None, last.turned))
    known = {v: k for k, v in (names | biases).items()} | {"down": last.weight, "down_bias": last.bias}
    wants(len(set(known.values())) == len(known))
    return plan, [known[name] for name in plan.operands[3:]]


def _width(h: Half) -> int:
    return len(range(*h.rows)) if h.rows else h.product.width


def _alike(inputs: Sequence[Any], halves: Sequence[Half], last: Product) -> bool:
    """Whether experts have one type, in front of their products and behind them."""
    values = [n.meta["val"] for n in (inputs[0], *inputs[3:], *(h.node for h in halves), last.rows, last.total)]
    return len({(v.dtype, v.device) for v in values}) == 1 and not inputs[1].meta["val"].is_floating_point()


# -- what belongs to it -----------------------------------------------------------------------------------------------


def _closed(end: fx.Node, inputs: set[Any], around: Surroundings) -> tuple[fx.Node, ...]:
    """Everything from the inputs to the end, which nobody else reads and nobody disturbs."""
    inside, asked = set[fx.Node](), [end]
    while asked:
        node = asked.pop()
        if node in inside or node in inputs:
            continue
        wants(node.op in ("call_function", "call_method"), "another input")
        inside.add(node)
        asked += node.all_input_nodes
        asked += [u for u in (node.users if node is not end else ()) if _beside(u, inside)]
    for node in inside - {end}:
        wants(inside.issuperset(node.users) or not _holds(node.meta.get("val")), "read elsewhere")
    nodes = tuple(sorted(inside, key=around.place.__getitem__))
    here = {around.place[n] for n in nodes}
    others = Surroundings(around.place, [w for w in around.writers if w[0] not in here])
    wants(nodes[-1] is end and all(others.waits(n, end) for n in nodes), "written to in between")
    return nodes


def _holds(value: Any) -> bool:
    """Whether a value has a tensor in it."""
    return isinstance(value, Tensor) or (isinstance(value, Iterable) and any(isinstance(v, Tensor) for v in value))


def _beside(user: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether a node changes a value in place, or only asks how long it is."""
    if user.target is operator.setitem or name_of(user) in ("add_", "iadd"):
        return user.args[0] in inside
    return user.target is len or (user.target is hold and name_of(user.args[0]) == "len")
