"""Weighted sums of a few parts, written out as products and sums, so that a kernel reads every part in place.

(w.unsqueeze(-1) * torch.stack([a, b], 1)).sum(1)  ->  w.unbind(1)[0] * a + w.unbind(1)[1] * b
torch.einsum("bf,bfd->bfd", s, x)                  ->  s[:, :, None] * x
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
from gatec.regions.sizes import require, size_of
from gatec.regions.surroundings import Surroundings
from gatec.tidy import example

FEW = 8  # parts


class Writer:
    """Nodes in front of `place`, each with an example of its value."""

    def __init__(self, module: nn.Module, place: fx.Node) -> None:
        self.graph, self.module, self.place = place.graph, module, place
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def node(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        kind = "call_method" if isinstance(target, str) else "call_function"
        with self.graph.inserting_before(self.place):
            return self._known(self.graph.create_node(kind, target, args, kwargs))

    def again(self, node: fx.Node, instead: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same call of other values."""
        with self.graph.inserting_before(self.place):
            new = self.graph.node_copy(node, lambda a: instead.get(a, a))
        return self._known(new)

    def _known(self, node: fx.Node) -> fx.Node:
        node.meta = {**self.place.meta, "val": example(self.module, node, self.mode)}
        return node

    def total(self, terms: Sequence[fx.Node]) -> fx.Node:
        found = terms[0]
        for term in terms[1:]:
            found = self.node(operator.add, found, term)
        return found

    def parts(self, node: fx.Node, dim: int, count: int) -> list[fx.Node]:
        """A value in pieces along a dimension, without it: what was stacked, or views."""
        dims: Any = node.args[1:] or (node.kwargs.get("dim", 0),)
        if (
            node.target is torch.stack
            and dims[0] % node.meta["val"].dim() == dim
            and isinstance(node.args[0], (list, tuple))
        ):
            return list(node.args[0])
        self.holds(node, dim, count)
        every = self.node("unbind", node, dim)
        return [self.node(operator.getitem, every, i) for i in range(count)]

    def holds(self, node: fx.Node, dim: int, count: int) -> None:
        """The graph is that of so many parts; a call with other sizes gets one of its own."""
        if node.op != "get_attr":
            require(size_of(node, dim, self.place), count, f"a sum of {count} parts", self.place)

    def apart(self, node: fx.Node, dim: int, whole: Sequence[int], user: fx.Node) -> list[fx.Node]:
        """What each part of a value of the size `whole` is computed from, of a value that broadcasts to it."""
        count, shape = int(whole[dim]), node.meta["val"].shape
        at = dim - len(whole) + len(shape)
        if at < 0:
            return [node] * count
        if shape[at] == 1:
            self.holds(node, at, 1)
            index = (*(slice(None),) * at, 0)
            return [self.node(operator.getitem, node, index)] * count
        if not pointwise(node) or set(node.users) != {user}:
            return self.parts(node, at, count)
        return self.distributed(node, at)

    def distributed(self, node: fx.Node, dim: int) -> list[fx.Node]:
        """A pointwise node on every part of its operands."""
        shape = node.meta["val"].shape
        operands = {
            a: self.apart(a, dim, shape, node) for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)
        }
        return [self.again(node, {a: parts[i] for a, parts in operands.items()}) for i in range(int(shape[dim]))]


def written(found: Iterable[Find], graph: fx.Graph, module: nn.Module) -> dict[fx.Node, fx.Node]:
    """In place; which nodes stand for the products of gates that were written out."""
    moved: dict[fx.Node, fx.Node] = {}
    around = Surroundings.of(graph, module)
    for node in dict.fromkeys(f.node for f in found):
        new = _einsum(node, module) if node.target is torch.einsum else _sum(node, module, around)
        if new is not None:
            moved[node] = new
    return moved


def _sum(node: fx.Node, module: nn.Module, around: Surroundings) -> fx.Node | None:
    """The sum of a product over a short dimension."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or called(user) != "sum" or not pointwise(node) or not around.waits(node, user):
        return None
    named = {**dict(zip(("dim", "keepdim"), user.args[1:], strict=False)), **user.kwargs}
    dim, shape = named.pop("dim", None), node.meta["val"].shape
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    kept = named.pop("keepdim", False)
    if named or type(dim) is not int or not _few(shape[dim]):
        return None
    writer, dim = Writer(module, user), dim % len(shape)
    new = writer.total(writer.distributed(node, dim))
    _replaced(user, writer.node("unsqueeze", new, dim) if kept else new)
    node.graph.erase_node(node)
    return new


def _einsum(node: fx.Node, module: nn.Module) -> fx.Node | None:
    """A product of two values, over which at most one short dimension is summed."""
    text, *rest = node.args
    given: Any = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    inputs, arrow, output = str(text).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or "." in inputs or len(terms) != 2 or any(len(set(t)) != len(t) for t in terms):
        return None
    over = [c for c in dict.fromkeys(inputs) if c not in output and c != ","]
    sizes = dict(zip("".join(terms), (n for x in given for n in x.meta["val"].shape), strict=True))
    if any([c for c in t if c in output] != [c for c in output if c in t] for t in terms):
        return None  # another order
    if len(over) > 1 or any(c not in t or not _few(sizes[c]) for c in over for t in terms):
        return None
    writer, sides = Writer(module, node), list[list[fx.Node]]()
    for term, value in zip(terms, given, strict=True):
        parts = writer.parts(value, term.index(over[0]), int(sizes[over[0]])) if over else [value]
        left = [c for c in term if c not in over]
        sides.append([_aligned(writer, part, left, output) for part in parts])
    new = writer.total([writer.node(operator.mul, a, b) for a, b in zip(*sides, strict=True)])
    _replaced(node, new)
    return new


def _aligned(writer: Writer, value: fx.Node, term: Sequence[str], output: str) -> fx.Node:
    """A value with dimensions of size one where the output has others."""
    index = tuple(slice(None) if c in term else None for c in output)
    return value if None not in index else writer.node(operator.getitem, value, index)


def _replaced(old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _few(size: Any) -> bool:
    return type(size) is int and 1 < size <= FEW
