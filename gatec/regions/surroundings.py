"""What stands around a region: the order of a graph, and who writes to memory."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from gatec.capture.guards import hold, writes
from gatec.capture.values import Apply
from gatec.grouped import grouped_linear
from gatec.match.spelling import overwrites
from gatec.match.terms import storage
from gatec.recurrence import linear_recurrence
from gatec.regions.nodes import pointwise
from gatec.routed import routed_convolution


@dataclass(frozen=True)
class Surroundings:
    """What decides whether a node may be computed later than it stands: its place, and who writes to memory."""

    place: dict[fx.Node, int]
    writers: list[tuple[int, set[int] | None]]  # place, memory written to; None changes how everything is computed

    @classmethod
    def of(cls, graph: fx.Graph, module: nn.Module) -> Surroundings:
        place = {n: i for i, n in enumerate(graph.nodes)}
        written = ((i, _written(n, module)) for n, i in place.items())
        return cls(place, [(i, memory) for i, memory in written if memory is None or memory])

    def placed(self, graph: fx.Graph) -> None:
        """Nodes that were put into the graph stand where the one behind them does."""
        last = len(self.place)
        for node in reversed(graph.nodes):
            last = self.place.setdefault(node, last)

    def waits(self, node: fx.Node, end: fx.Node) -> bool:
        """Whether the node computes the same at the place of `end`."""
        read = {m for a in node.all_input_nodes if (m := storage(a)) is not None}
        first = bisect_left(self.writers, self.place[node], key=lambda w: w[0])
        later = itertools.takewhile(lambda w: w[0] < self.place[end], self.writers[first:])
        return not any(memory is None or memory & read for _, memory in later)


def _written(node: fx.Node, module: nn.Module) -> set[int] | None:
    """The memory that one node may write to; None for what changes modes: autocast, gradients, a function transform."""
    if node.op in ("placeholder", "get_attr", "output"):
        return set()
    if node.op == "call_module":
        pure = type(child := module.get_submodule(str(node.target))).__module__.startswith("torch.nn.modules")
        pure = pure and not any(child.children()) and not getattr(child, "inplace", False) and not writes(node)
        return set() if pure else _memory(node.all_input_nodes)
    if node.target in fx.node._side_effectful_functions or transforms(node):
        return None
    if writes(node) or overwrites(node):
        known = not isinstance(node.target, torch._ops.OpOverload)
        targets = [node.kwargs["out"]] if "out" in node.kwargs else node.all_input_nodes[: 1 if known else None]
        return _memory(t for t in targets if isinstance(t, fx.Node))
    if node.op == "call_method" or node.target is hold or (isinstance(node.target, Apply) and pointwise(node)):
        return set()
    return set() if _computes(node.target) else _memory(node.all_input_nodes)


def _computes(target: Any) -> bool:
    """Whether something called with no "in place" about it only computes: operators that say so, torch's and Python's own."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return not any(getattr(target, name)._schema.is_mutable for name in target.overloads())
    own = str(getattr(target, "__module__", None) or "").split(".")[0] in ("torch", "_operator", "math", "builtins", "")
    own = own or target in (grouped_linear, linear_recurrence, routed_convolution)
    return isinstance(target, torch._ops.OpOverload) or (own and not isinstance(target, torch._ops.HigherOrderOperator))


def transforms(node: fx.Node) -> int:
    """1 where a torch.func transform begins and -1 where it ends; between the two, tensors have hidden dimensions."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name.endswith("_increment_nesting") - name.endswith("_decrement_nesting")


def _memory(nodes: Iterable[fx.Node]) -> set[int]:
    return {m for n in nodes if (m := storage(n)) is not None}
