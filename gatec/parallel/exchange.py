"""Rows on their way to experts that other processes hold, and back.

Rows are sorted by expert, as `gatec::grouped_linear` takes them: those of expert e end at ends[e], and what lies behind
the last end stays at home. Weights are DTensors, sharded by expert over one dimension of a mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from gatec.parallel.layout import Layout

Sent = tuple[Tensor, Tensor, Tensor, Any]  # rows, ends and the expert of each row, as its holder counts; the way back


@dataclass(frozen=True)
class Travelled:
    """Rows that were sent to the holders of their experts: how many to and from each process, and their order there."""

    group: dist.ProcessGroup
    sent: list[int]
    received: list[int]
    order: Tensor
    rows: int


@dataclass(frozen=True)
class Picked:
    """The rows from `first` to `last`, of `rows`, which every process has."""

    group: dist.ProcessGroup
    first: int
    last: int
    rows: int


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def send(rows: Tensor, ends: Tensor, weight: DTensor, layout: Layout) -> Sent:
    """Every process has tokens of its own: each row goes to the process that holds its expert."""
    group = weight.device_mesh.get_group()
    counts = F.pad(torch.diff(ends, prepend=ends.new_zeros(1)), (layout.shared, 0)).unflatten(0, (group.size(), -1))
    coming = torch.empty_like(counts)  # rows from each process for each block here
    dist.all_to_all_single(coming, counts.contiguous(), group=group)
    coming = coming[:, layout.mine(weight.device_mesh)[2] :]  # no row is sent to a shared one
    sent, received = counts.sum(1).tolist(), coming.sum(1).tolist()
    numbers = torch.arange(coming.shape[1], device=coming.device).repeat(group.size())
    expert, order = torch.sort(numbers.repeat_interleave(coming.flatten()), stable=True)
    way = Travelled(group, sent, received, order, len(rows))
    return along(rows, way), coming.sum(0).cumsum(0), expert, way


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def pick(rows: Tensor, ends: Tensor, weight: DTensor, layout: Layout) -> Sent:
    """Every process has all tokens: each takes the rows of its own experts."""
    first, many, common = layout.mine(weight.device_mesh)
    marks = F.pad(ends, (layout.shared + 1, 0))[first : first + many + 1]
    counts = torch.diff(marks)[common:]
    expert = torch.arange(len(counts), device=ends.device).repeat_interleave(counts)
    way = Picked(weight.device_mesh.get_group(), int(marks[0]), int(marks[-1]), len(rows))
    return along(rows, way), counts.cumsum(0), expert, way


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def along(values: Tensor, way: Travelled | Picked) -> Tensor:
    """Values with a row for each row that was sent, in the same way."""
    if isinstance(way, Picked):
        copied: Tensor = Copied.apply(values, way.group)  # type: ignore[no-untyped-call]
        return copied[way.first : way.last]
    numbers = values.byte() if values.dtype == torch.bool else values
    here = all_to_all_single_autograd(numbers[: sum(way.sent)].contiguous(), way.received, way.sent, way.group)
    return here[way.order].to(values.dtype)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def back(out: Tensor, way: Travelled | Picked) -> Tensor:
    """What the experts made of the rows, in the order in which the rows came."""
    if isinstance(way, Picked):
        whole = F.pad(out, (0, 0, way.first, way.rows - way.last))
        summed: Tensor = Summed.apply(whole, way.group)  # type: ignore[no-untyped-call]
        return summed
    home = out[torch.argsort(way.order)].contiguous()
    live = all_to_all_single_autograd(home, way.sent, way.received, way.group)
    return live if len(live) == way.rows else F.pad(live, (0, 0, 0, way.rows - len(live)))


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def held(weight: DTensor, layout: Layout, part: int, last: bool, share: float) -> Tensor:
    """The experts of one part of a weight that this process holds; `share` is the part of their gradient that counts."""
    _, many, common = layout.mine(weight.device_mesh)
    here = layout.part(weight.to_local(), part, many)[common:]
    if share != 1.0 and here.requires_grad:
        here = here.view_as(here)
        here.register_hook(lambda grad: grad * share)
    return here.movedim(1, -1) if last else here


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def shared(weight: DTensor, layout: Layout, part: int, last: bool, share: float) -> Tensor:
    """The blocks of one part that every token uses, brought together from the processes that hold them."""
    first, many, common = layout.mine(weight.device_mesh)
    blocks = layout.part(weight.to_local(), part, many)[:common]
    group = weight.device_mesh.get_group()
    whole: Tensor = Whole.apply(blocks, min(first, layout.shared), layout.shared, share, group)  # type: ignore[no-untyped-call]
    return whole.flatten(0, 1).movedim(0, -1) if last else whole.flatten(0, 1)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def evened(value: Tensor, weight: DTensor) -> Tensor:
    """What every process has; its gradient is the mean of theirs."""
    if not value.requires_grad:
        return value
    group = weight.device_mesh.get_group()
    value = value.view_as(value)
    value.register_hook(lambda grad: summed(grad, group) / group.size())
    return value


class Copied(torch.autograd.Function):
    """The same on every process; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return summed(grad, ctx.group), None


class Summed(torch.autograd.Function):
    """The sum over the processes; its gradient is the same on every one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class Whole(torch.autograd.Function):
    """Blocks of all processes; where tokens differ (`share` < 1), so do the gradients, and their sum counts."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, first: int, many: int, share: float, group: dist.ProcessGroup) -> Tensor:
        ctx.own, ctx.share, ctx.group = slice(first, first + len(blocks)), share, group
        whole = blocks.new_zeros(many, *blocks.shape[1:])
        whole[ctx.own] = blocks
        return summed(whole, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        whole = grad if ctx.share == 1.0 else summed(grad, ctx.group) * ctx.share
        return whole[ctx.own], None, None, None, None


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
