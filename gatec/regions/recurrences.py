"""Regions that end in a linear recurrence: the gates that make its decay and its new part, however they are laid out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.recognise import Find
from gatec.regions.nodes import pointwise
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
