"""Depthwise convolutions in front of a gate: a few taps, and a result as long as what is convolved."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gatec.capture.guards import SELF, Changed
from gatec.match.terms import shape_of
from gatec.projections import HOOKS
from gatec.regions.nodes import convolves, pointwise
from gatec.regions.region import Region
from gatec.regions.sizes import require, size_of
from gatec.regions.surroundings import Surroundings
from gatec.regions.views import Copies, index_of, movable, ordering, turns, views
from gatec.tidy import example

MOST = 9  # taps, each of which is a read
LAYERS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d}
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution of `convolved` read: by dimension `left` elements before, and `excess` behind the end."""

    convolved: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    taps: tuple[int, ...]
    dilation: tuple[int, ...]
    left: tuple[int, ...]
    excess: tuple[int, ...]

    @property
    def shifts(self) -> list[tuple[int, ...]]:
        places = torch.cartesian_prod(*(torch.arange(n) for n in self.taps)).view(-1, len(self.taps)).tolist()
        return [tuple(k * d - p for k, d, p in zip(at, self.dilation, self.left, strict=True)) for at in places]


def window(node: fx.Node) -> Window | None:
    """Of a depthwise convolution with few taps and steps of one."""
    given = {**DEFAULTS, **dict(zip(NAMES, node.args, strict=False)), **node.kwargs}
    x, weight = (given[n].meta.get("val") for n in ("input", "weight"))
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)) or x.dim() != weight.dim() or x.dtype != weight.dtype:
        return None
    axes, taps = x.dim() - 2, tuple(weight.shape[2:])
    stride, dilation = (_each(given[n], axes) for n in ("stride", "dilation"))
    depthwise = given["groups"] == weight.shape[0] == x.shape[1] and weight.shape[1] == 1
    padding = given["padding"]
    if not depthwise or set(stride) != {1} or not 1 < weight[0].numel() <= MOST or isinstance(padding, str):
        return None
    left, source = _each(padding, axes), given["input"]
    both = [2 * p for p in left]
    if _pads(source, axes) and len(source.users) == 1:
        before, after = _widths(source, axes)
        left, both = (
            tuple(map(sum, zip(left, before, strict=True))),
            [b + p + q for b, p, q in zip(both, before, after, strict=True)],
        )
        source = source.args[0]
    excess = tuple(b - d * (n - 1) for b, d, n in zip(both, dilation, taps, strict=True))
    return Window(source, given["weight"], given["bias"], taps, dilation, left, excess)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == axes else (value,) * axes \
        if isinstance(value, int) else tuple(value) * axes  # fmt: skip


def _pads(node: fx.Node, axes: int) -> bool:
    """Zeros around the last dimensions."""
    if node.target is not F.pad or len(node.args) < 2:
        return False
    pads: Any = node.args[1]
    options = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
    plain = options.get("mode", "constant") == "constant" and not options.get("value")
    return plain and len(pads) <= 2 * axes and all(type(p) is int and p >= 0 for p in pads)


def _widths(node: fx.Node, axes: int) -> tuple[list[int], list[int]]:
    pads: Any = [*node.args[1], *[0] * (2 * axes - len(node.args[1]))]  # type: ignore[arg-type,misc]
    return [pads[2 * (axes - 1 - d)] for d in range(axes)], [pads[2 * (axes - 1 - d) + 1] for d in range(axes)]


# -- growth -----------------------------------------------------------------------------------------------------------


def convolved(
    region: Region, around: Surroundings, module: nn.Module | None, taken: set[fx.Node], moved: dict[fx.Node, fx.Node]
) -> Region:
    """The region with one depthwise convolution in front of it, the views between them, and what makes its input."""
    if module is None or region.anchor != "pointwise":
        return region
    for read in region.inputs:
        chain = _chain(read, region, around, taken)
        if chain is None or shape_of(read) != shape_of(region.output) or not _depthwise(chain[0], module):
            continue
        conv = opened(chain[0], module)
        around.placed(conv.graph)
        found = window(conv)
        if found is None or not _fits(found, conv, chain[1:]):
            continue
        around.placed(conv.graph)
        work = _work(found.convolved, conv, region.output, around, module, taken, moved)
        inside = {*work, *_padding(window(conv), conv), conv, *chain[1:], *region.nodes}
        nodes = tuple(n for n in conv.graph.nodes if n in inside)
        return Region(
            region.find, nodes, tuple(dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside))
        )
    return region


def _work(
    value: fx.Node, conv: fx.Node, end: fx.Node, around: Surroundings, module: nn.Module, taken: set[fx.Node],
    moved: dict[fx.Node, fx.Node],
) -> list[fx.Node]:  # fmt: skip
    """Pointwise work that only the convolution reads, seen through the views between them."""
    reader = conv if value in conv.all_input_nodes else conv.all_input_nodes[0]
    inside = movable(reader, {value}, around, end)
    if not any(map(pointwise, inside)) or inside & taken:
        return []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copies = Copies(reader, inside, lambda n: example(module, n, mode))
    reader.replace_input_with(value, copies.of(value))
    copies.settle()
    around.placed(conv.graph)
    taken.update(inside)
    moved.update(copies.copied)
    return copies.nodes


def _chain(read: fx.Node, region: Region, around: Surroundings, taken: set[fx.Node]) -> list[fx.Node] | None:
    """From a convolution to what the region reads of it: nobody else reads what lies between."""
    inside, chain, node = set(region.nodes), list[fx.Node](), read
    while inside.issuperset(node.users) and node not in taken and around.waits(node, region.output):
        inside.add(node)
        chain.insert(0, node)
        if not views(node):
            return chain
        node = node.all_input_nodes[0]
    return None


def _depthwise(node: fx.Node, module: nn.Module) -> bool:
    if convolves(node):
        return window(node) is not None
    layer: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is None or not plain(layer) or len(node.args) != 1 or node.kwargs or sum(
        n.op == "call_module" and n.target == node.target for n in node.graph.nodes) > 1:  # fmt: skip
        return False
    return bool(layer.groups == layer.in_channels == layer.out_channels and layer.weight[0].numel() <= MOST)


def plain(layer: Any) -> bool:
    """Whether a layer is torch's own convolution with zeros around, and nothing else happens when it is called."""
    if type(layer) not in LAYERS or "forward" in vars(layer) or any(getattr(layer, h) for h in HOOKS):
        return False
    return (
        type(layer._parameters.get("weight")) is nn.Parameter and layer.padding_mode == "zeros" and not layer.transposed
    )


def settings_at(module: nn.Module, path: str) -> tuple[Any, ...]:
    """How a plain convolution is set; a graph that was made for other settings does not hold."""
    layer: Any = module.get_submodule(path)
    if not plain(layer):
        raise Changed(path)
    return layer.stride, layer.padding, layer.dilation, layer.groups


def opened(node: fx.Node, module: nn.Module) -> fx.Node:
    """The call of a layer as a function of its weights, in a graph that holds only as long as the layer is plain."""
    if node.op != "call_module":
        return node
    graph, path, me = node.graph, str(node.target), SELF
    layer: Any = module.get_submodule(path)
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        asked = graph.call_function(settings_at, (me, path))  # type: ignore[arg-type]
        asked.meta["val"] = settings_at(module, path)
    require(asked, asked.meta["val"], f"{path} is a plain convolution", first)
    with graph.inserting_before(node):
        read: list[Any] = [None, None]
        for i, name in enumerate(("weight", "bias")):
            if getattr(layer, name) is not None:
                read[i] = graph.get_attr(f"{path}.{name}")
                read[i].meta["val"] = getattr(layer, name)
        function = LAYERS[type(layer)]
        new = graph.create_node("call_function", function, (node.args[0], *read, *asked.meta["val"]), name=node.name)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def _fits(found: Window, conv: fx.Node, chain: Sequence[fx.Node]) -> bool:
    """Whether exactly the excess is cut off behind: in a graph that holds only where it is."""
    order, cuts = list(range(conv.meta["val"].dim())), dict[int, tuple[fx.Node, int]]()
    for view in chain:
        if turns(view):
            order = [order[d] for d in ordering(view, len(order))]
            continue
        index = index_of(view, len(order))
        for place, part in enumerate(index):
            if part.stop is not None:
                cuts[order[place]] = view, place
    wanted = {d + 2 for d, n in enumerate(found.excess) if n}
    if set(cuts) != wanted or min(found.excess) < 0:
        return False
    return all(_cut(found, d, *cuts[d], len(order)) for d in wanted)


def _cut(found: Window, dim: int, view: fx.Node, place: int, rank: int) -> bool:
    """Write a cut as how much it takes away, where the graph holds only if that is as much."""
    stop, excess = index_of(view, rank)[place].stop, found.excess[dim - 2]
    if type(stop) is int and stop < 0:
        return -stop == excess
    length = found.convolved.meta["val"].shape[dim]
    if (stop.meta.get("val") if isinstance(stop, fx.Node) else stop) != length:
        return False
    size = size_of(found.convolved, dim, view)
    with view.graph.inserting_before(view):
        same = view.graph.call_function(operator.eq, (size, stop))
        same.meta["val"] = True
    require(same, True, "a convolution is cut to the length of what it convolves", view)
    parts = list(index_of(view, rank))
    parts[place] = slice(None, -excess)
    view.args = (view.args[0], tuple(parts))
    return True


def _padding(found: Window | None, conv: fx.Node) -> list[fx.Node]:
    return [conv.all_input_nodes[0]] if found and conv.all_input_nodes[0] is not found.convolved else []
