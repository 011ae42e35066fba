"""Where experts lie in a parameter, read off the views of it that a graph takes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from gatec.errors import Refused

VIEWS = {"t", "flatten", "unflatten", "permute", operator.getitem}


class Layout(NamedTuple):
    """Along `dim` a parameter holds `parts` layers; each has `shared` blocks for all tokens, then one for each expert."""

    dim: int
    parts: int
    shared: int
    blocks: int

    @property
    def placement(self) -> Placement:
        """So many blocks of every part for each process."""
        return Shard(self.dim) if self.parts == 1 else _StridedShard(self.dim, split_factor=self.parts)

    def mine(self, mesh: DeviceMesh) -> tuple[int, int, int]:
        """The first block of this process, how many it has, and how many of these are shared."""
        many = self.blocks // mesh.size()
        first = mesh.get_local_rank() * many
        return first, many, min(max(self.shared - first, 0), many)

    def part(self, local: Tensor, part: int, many: int) -> Tensor:
        """[blocks, units, ...] of what this process holds."""
        found: Tensor = local.movedim(self.dim, 0).unflatten(0, (self.parts, many, -1))[part]
        return found


@dataclass(frozen=True)
class View:
    """Rows of a parameter: `count` blocks of `units` from `first` on, along `dim`; `last`: units are the last dimension."""

    name: str
    dim: int
    size: int
    first: int
    count: int
    units: int
    last: bool


def view(value: fx.Node, rows: int | None = None) -> View:
    """What a value takes of a parameter: blocks [experts, ...] of one of its dimensions, or a range of its dimension `rows`."""
    stacked = rows is None
    steps, node = [], value
    while node.op != "get_attr":
        if node.target not in VIEWS or len(node.all_input_nodes) != 1:
            raise Refused("its experts are not blocks of whole parameters, one after another")
        steps.append(node)
        node = node.all_input_nodes[0]
    shape = tuple(node.meta["val"].shape)
    for dim in range(len(shape)) if rows is None else [rows]:
        size = shape[dim]
        numbers = torch.arange(size).view(-1, *[1] * (len(shape) - dim - 1)).expand(shape)
        for step in reversed(steps):
            numbers = _applied(step, numbers)
        inner = numbers[0] if stacked else numbers
        axes = [i for i, stride in enumerate(inner.stride()) if stride]
        units = inner.shape[axes[0]] if len(axes) == 1 else 0
        if units and inner.stride(axes[0]) == 1 and (not stacked or numbers.stride(0) == units):
            count = numbers.shape[0] if stacked else 1
            last = axes[0] > 0 and axes[0] == inner.ndim - 1
            return View(str(node.target), dim, size, int(numbers.storage_offset()), count, units, last)
    raise Refused("its experts are not blocks of whole parameters, one after another")


def _applied(step: fx.Node, value: Tensor) -> Any:
    if callable(step.target):
        return step.target(value, *step.args[1:], **step.kwargs)
    return getattr(value, str(step.target))(*step.args[1:], **step.kwargs)


def layout_of(views: set[View]) -> Layout:
    """Of all the views of one parameter that are stacked experts."""
    one, *others = views
    parts = len(views)
    room = one.size // parts
    shared, rest = divmod(room - one.count * one.units, one.units)
    found = Layout(one.dim, parts, shared, shared + one.count)
    alike = all((v.dim, v.count, v.units) == (one.dim, one.count, one.units) for v in others)
    starts = {part * room + shared * one.units for part in range(parts)}
    if not alike or rest or shared < 0 or one.size % parts or {v.first for v in views} != starts:
        raise Refused(f"{one.name} is not the same number of blocks for each of its layers")
    return found


def common(node: fx.Node, layout: Layout) -> tuple[fx.Node, View]:
    """The last view that follows a parameter outside of the experts, and what it takes: the shared blocks of one part."""
    while len(node.users) == 1 and (user := next(iter(node.users))).target in VIEWS and len(user.all_input_nodes) == 1:
        node = user
    found = view(node, layout.dim)
    room = found.size // layout.parts
    if found.first % room or found.units * layout.blocks != room * layout.shared:
        raise Refused(f"{found.name} is read outside of its experts")
    return node, found
