"""Regions with a depthwise convolution in front of the gate: the taps and the gate in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.derive import spared
from gatec.kernels import conv
from gatec.making import MAKERS, Made, Run, gradients, origin, pull_of
from gatec.pieces import Piece, floats, gather, piece
from gatec.regions import Region, convolves, named, window
from gatec.regions.views import ordering, turns, views


def made(region: Region) -> Made:
    """What is convolved, the taps, and what stands behind them; everything is computed again for the gradients."""
    node = next(n for n in region.nodes if convolves(n))
    found, result, order = window(node), node, list(range(node.meta["val"].dim()))
    assert found is not None
    while len(result.users) == 1 and (user := next(iter(result.users))) in region.nodes and views(user):
        order = [order[d] for d in ordering(user, len(order))] if turns(user) else order
        result = user
    every = (*region.inputs, result)
    called = dict(zip(every, map(spared, named(every)), strict=True))
    outside = {n: called[n] for n in region.inputs}
    before, of_before = piece(region.nodes, found.convolved, outside)
    behind, of_behind = piece(region.nodes, region.output, {result: called[result], **outside})
    bias = called[found.bias] if found.bias else None
    axes = tuple(order.index(d + 2) for d in range(len(found.taps)))
    plan = conv.Plan(
        tuple(outside.values()), tuple(x.dtype for x in region.examples), before.names, behind.names[1:],
        called[found.weight], bias, called[result], tuple(order), order.index(1), axes, tuple(found.shifts),
    )  # fmt: skip
    kernel = conv.render(region.name, origin(region), plan, of_before, of_behind)
    pulls = pull_of(before.run, of_before), pull_of(behind.run, of_behind)
    widths = tuple((p, d * (n - 1) - p) for p, d, n in zip(found.left, found.dilation, found.taps, strict=True))
    pull = Slopes(plan, before, behind, *pulls, widths, found.dilation)
    return Made(kernel, plan.operands, pull, {"kernel": kernel.forward}, {"kernel": gradients(kernel)})


MAKERS["conv"] = made


@dataclass(frozen=True, eq=False)
class Slopes:
    """The gradients by the library's convolution; `widths` are the zeros that make the result as long as its input."""

    plan: conv.Plan
    before: Piece
    behind: Piece
    of_before: Run
    of_behind: Run
    widths: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def __call__(self, grad: Tensor, *xs: Tensor) -> list[Tensor]:
        plan, known = self.plan, dict(zip(self.plan.operands, xs, strict=True))
        weight, bias = known[plan.weight], known[plan.bias] if plan.bias else None
        near, beside = ([known[n] for n in names] for names in (plan.before, plan.behind))
        x = F.pad(self.before.run(*near), self._pads())
        function = F.conv1d if len(self.dilation) == 1 else F.conv2d
        y = function(x, weight, bias, dilation=self.dilation, groups=len(weight)).permute(plan.order)
        slope, *others = self.of_behind(grad, y, *beside)
        back = sorted(range(len(plan.order)), key=plan.order.__getitem__)
        dx, dw, db = torch.ops.aten.convolution_backward(
            slope.permute(back), x, weight, None if bias is None else [len(bias)], [1] * len(self.dilation),
            [0] * len(self.dilation), self.dilation, False, [0] * len(self.dilation), len(weight), [True, True, bias is not None],
        )  # fmt: skip
        inner = self.of_before(F.pad(dx, [-p for p in self._pads()]), *near)
        found: dict[str, Tensor] = {plan.weight: dw, **({plan.bias: db} if plan.bias else {})}
        gather(found, plan.before, inner, known)
        gather(found, plan.behind, others, known)
        return [found[n] for n in floats(plan.operands, known)]

    def _pads(self) -> list[int]:
        return [p for pair in reversed(self.widths) for p in pair]
