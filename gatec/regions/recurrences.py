"""Regions that end in a linear recurrence: the gates that make its decay and its new part, however they are laid out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.recognise import Find
from gatec.recurrence import linear_recurrence
from gatec.regions.nodes import called, pointwise
from gatec.regions.region import Region
from gatec.regions.surroundings import Surroundings
from gatec.regions.views import Copies, movable
from gatec.tidy import example


def parts(node: fx.Node) -> tuple[Any, Any, Any, int, bool]:
    """Decay, new part, first state, dimension and direction of a recurrence."""
    names, defaults = ("a", "b", "h0", "dim", "reverse"), {"h0": None, "dim": 1, "reverse": False}
    given: Any = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given["a"], given["b"], given["h0"], given["dim"], given["reverse"]


def recurrence(
    find: Find, around: Surroundings, module: nn.Module | None, taken: set[fx.Node], moved: dict[fx.Node, fx.Node]
) -> Region | None:
    """Backwards from decay and new part over pointwise work, and over views of it where the graph may be changed."""
    end = find.node
    if module is not None:
        _straight(end)
        around.placed(end.graph)
    decay, new, first, *_ = parts(end)
    if not all(isinstance(x, fx.Node) for x in (decay, new)) or not (first is None or isinstance(first, fx.Node)):
        return None
    inside = movable(end, {decay, new}, around, end, through=module is not None) - taken
    if not any(map(pointwise, inside)):
        return None
    nodes = (*sorted(inside, key=around.place.__getitem__), end)
    if module is not None:
        owner, mode = module, FakeTensorMode(allow_non_fake_inputs=True)
        copies = Copies(end, inside, lambda n: example(owner, n, mode))
        ends = {n: copies.of(n) for n in (decay, new)}
        end.args, end.kwargs = fx.node.map_arg((end.args, end.kwargs), lambda a: ends.get(a, a))
        copies.settle()
        moved.update(copies.copied)
        around.placed(end.graph)
        taken |= inside
        nodes = (*copies.nodes, end)
    read = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in nodes)
    return Region(find, nodes, tuple(read)) if all(isinstance(a.meta.get("val"), Tensor) for a in read) else None


def _straight(end: fx.Node) -> None:
    """A recurrence whose states are moved behind it runs along the dimension to which they are moved."""
    decay, new, first, dim, reverse = parts(end)
    states: Tensor = end.meta["val"]
    behind = next(iter(end.users)) if len(end.users) == 1 else end
    if (
        called(behind) != "movedim"
        or len(behind.args) != 3
        or not (isinstance(decay, fx.Node) and isinstance(new, fx.Node))
    ):
        return
    moves: Any = behind.args[1:]
    source, target = moves
    ranks = [x.meta["val"].dim() for x in (decay, new)]
    plain = type(source) is type(target) is int and min(source, target) >= 0 and source == dim % states.dim()
    if not plain or any(states.dim() > r > states.dim() - max(source, target) - 1 for r in ranks):
        return
    moved = [
        _moved(x, source, target, end) if r == states.dim() else x for x, r in zip((decay, new), ranks, strict=True)
    ]
    if end.target is linear_recurrence:
        end.args, end.kwargs = (*moved, first), {"dim": target, "reverse": reverse}
    else:
        end.args, end.kwargs = (*moved, first, target, reverse), {}
    end.meta["val"] = behind.meta["val"]
    behind.replace_all_uses_with(end)
    end.graph.erase_node(behind)


def _moved(node: fx.Node, source: int, target: int, end: fx.Node) -> fx.Node:
    with end.graph.inserting_before(end):
        new = end.graph.call_method("movedim", (node, source, target))
    new.meta["val"] = node.meta["val"].movedim(source, target)
    return new
