"""Views between pointwise work and what reads it: the same work on views of what it reads.

A loop over time, and a convolution, want their dimensions in another order than the layers in front of them. A kernel reads any
strides, so a view of an operand costs nothing, but between two nodes it would end a region.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from gatec.regions.nodes import called, helper, pointwise
from gatec.regions.surroundings import Surroundings

ORDERS = {"movedim", "moveaxis", "transpose", "permute", "swapaxes", "swapdims"}
SIZES = {
    "size",
    "dim",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
}
FACTS = {"shape", "ndim", "dtype", "device"}


def outline(dtype: torch.dtype, *operands: Tensor) -> Tensor:
    """A tensor of the shape that operands broadcast to, without memory: for what only asks for sizes."""
    shape = torch.broadcast_shapes(*(x.shape for x in operands))
    return operands[0].new_zeros((), dtype=dtype).expand(shape)


def views(node: fx.Node) -> bool:
    """Whether a node only orders dimensions, or keeps the first so many of some of them."""
    if node.op not in ("call_function", "call_method") or not isinstance(node.meta.get("val"), Tensor):
        return False
    return turns(node) or _cuts(node)


def turns(node: fx.Node) -> bool:
    """Whether it orders dimensions."""
    return called(node) in ORDERS or (node.target is getattr and node.args[1] == "mT")


def _cuts(node: fx.Node) -> bool:
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if called(node) != "getitem" or not isinstance(value, Tensor):
        return False
    kept = [i for i in _index(node) if i is not Ellipsis]
    return all(isinstance(i, slice) and i.start in (None, 0) and i.step in (None, 1) for i in kept)


def _index(node: fx.Node) -> tuple[Any, ...]:
    return node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)


def index_of(view: fx.Node, rank: int) -> list[slice]:
    """What a cut keeps of each dimension."""
    index = list(_index(view))
    gap = index.index(Ellipsis) if Ellipsis in index else len(index)
    before, after = index[:gap], index[gap + 1 :]
    return [*before, *[slice(None)] * (rank - len(before) - len(after)), *after]


def ordering(view: fx.Node, rank: int) -> list[int]:
    """Which dimension each dimension of a view was."""
    probe = torch.empty(tuple(range(2, 2 + rank)), device="meta")
    made = view.target if callable(view.target) else getattr(torch.Tensor, view.target)
    return [n - 2 for n in made(probe, *view.args[1:], **view.kwargs).shape]


def sizes_only(node: fx.Node, depth: int = 3) -> bool:
    """Whether a node asks for no more than the shape, the type or the place of what it reads first."""
    if node.target is getattr:
        return node.args[1] in FACTS
    if called(node) == "getitem" and depth and len(node.all_input_nodes) == 1:
        return all(sizes_only(u, depth - 1) for u in node.users)
    return node.op in ("call_function", "call_method") and called(node) in SIZES


def movable(
    reader: fx.Node, asked: set[fx.Node], around: Surroundings, end: fx.Node, *, through: bool = True
) -> set[fx.Node]:
    """The pointwise work under what `reader` is asked for that may be done at `end`: nobody else reads its values.

    `through`: as is work behind views of it, and whoever asks for sizes only can be told.
    """
    inside: set[fx.Node] = set()
    while asked:
        node = max(asked, key=around.place.__getitem__)
        asked.remove(node)
        work = pointwise(node) or (views(node) if through else helper(node))
        alone = all(u in inside or u is reader or (through and sizes_only(u)) for u in node.users)
        if work and alone and around.waits(node, end):
            inside.add(node)
            asked.update(a for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor))
    return inside


@dataclass
class Copies:
    """The pointwise work `inside`, copied to just before `end` with the views behind it moved to what it reads."""

    end: fx.Node
    inside: set[fx.Node]
    example: Callable[[fx.Node], Any]
    nodes: list[fx.Node] = field(default_factory=list)
    made: dict[Any, fx.Node] = field(default_factory=dict)
    copied: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def of(self, node: fx.Node, behind: tuple[fx.Node, ...] = ()) -> fx.Node:
        """The node with these views behind it."""
        behind = _folded(behind, node.meta["val"].dim())
        key = (node, tuple(repr((v.target, v.args[1:], v.kwargs)) for v in behind))
        if key not in self.made:
            self.made[key] = self._of(node, behind)
        return self.made[key]

    def _of(self, node: fx.Node, behind: tuple[fx.Node, ...]) -> fx.Node:
        if node not in self.inside:
            return self._seen(node, behind)
        if views(node):
            return self.of(node.all_input_nodes[0], (node, *behind))
        rank = node.meta["val"].dim()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: self._operand(a, behind, rank))
        new = self._called(node.target, args, kwargs, node.op)
        new.meta = {**node.meta, "val": new.meta["val"]}
        self.nodes.append(new)
        self.copied[node] = new
        return new

    def _operand(self, node: fx.Node, behind: tuple[fx.Node, ...], rank: int) -> Any:
        """What a node of this rank reads, seen through the views that stood behind the node."""
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return value  # a type, which the graph holds for
        missing = rank - value.dim()
        if not missing:
            return self.of(node, behind)
        seen = self.of(node)
        if not value.dim() or all(_keeps(v, rank, value.dim()) for v in behind):
            return seen
        return self._seen(self._called(operator.getitem, (seen, (None,) * missing + (Ellipsis,))), behind)

    def _seen(self, node: fx.Node, behind: tuple[fx.Node, ...]) -> fx.Node:
        for view in behind:
            node = self._called(view.target, (node, *view.args[1:]), view.kwargs, view.op, node.name)
        return node

    def _called(
        self, target: Any, args: Any, kwargs: Any = None, op: str = "call_function", name: str | None = None
    ) -> fx.Node:
        with self.end.graph.inserting_before(self.end):
            new = self.end.graph.create_node(op, target, args, kwargs, name)
        new.meta["val"] = self.example(new)
        return new

    # -- what stays where it was ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Whoever asked for sizes of what moved asks an outline of it; the rest of it goes."""
        order = [n for n in self.end.graph.nodes if n in self.inside]
        outlines: dict[fx.Node, fx.Node] = {}
        for node in order:
            asking = [u for u in node.users if u not in self.inside and u is not self.end]
            if asking:
                outlined = self._outlined(node, node, outlines)
                node.replace_all_uses_with(outlined, delete_user_cb=lambda u, asking=asking: u in asking)
        for node in reversed(order):
            self.end.graph.erase_node(node)

    def _outlined(self, node: fx.Node, at: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
        if node not in self.inside:
            return node
        if node not in known:
            of = [self._outlined(a, at, known) for a in node.all_input_nodes if isinstance(a.meta["val"], Tensor)]
            with self.end.graph.inserting_before(at):
                if views(node):
                    new = self.end.graph.create_node(node.op, node.target, (of[0], *node.args[1:]), node.kwargs)
                else:
                    new = self.end.graph.call_function(outline, (node.meta["val"].dtype, *of))
            new.meta["val"] = node.meta["val"]
            known[node] = new
        return known[node]


def _folded(behind: tuple[fx.Node, ...], rank: int) -> tuple[fx.Node, ...]:
    """Without orders that the next one takes back."""
    kept: list[fx.Node] = []
    for view in behind:
        if kept and turns(view) and turns(kept[-1]):
            first, second = ordering(kept[-1], rank), ordering(view, rank)
            if [first[d] for d in second] == list(range(rank)):
                kept.pop()
                continue
        kept.append(view)
    return tuple(kept)


def _keeps(view: fx.Node, rank: int, last: int) -> bool:
    """Whether a view of so many dimensions leaves the last of them as they are."""
    if turns(view):
        return ordering(view, rank)[rank - last :] == list(range(rank - last, rank))
    return all(i == slice(None) for i in index_of(view, rank)[rank - last :])
