"""Regions that end in a linear recurrence: one scan whose decay and new part are computed where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.derive import spared
from gatec.errors import GatecError
from gatec.keeping import Itself, Keeping
from gatec.kernel import Kernel
from gatec.kernels import scan
from gatec.making import MAKERS, Run, origin, pull_of
from gatec.pieces import Piece, gather, piece
from gatec.recurrence import adjoint, earlier, of_first
from gatec.regions import Region, parts


def made(region: Region) -> Keeping:
    """The states are the result, and all that backward needs beside the operands."""
    a, b, h0, dim, reverse = parts(region.output)
    names = [spared(n) for n in region.operands]
    outside = dict(zip(region.inputs, names, strict=True))
    (decay, of_a), (new, of_b) = (piece(region.nodes, x, outside) for x in (a, b))
    states, first = region.output.meta["val"], None if h0 is None else outside[h0]
    if states.dtype != b.meta["val"].dtype or not states.is_floating_point():
        raise GatecError("states of the type of what enters them", found=f"{states.dtype} for {b.meta['val'].dtype}")
    if first in (*decay.names, *new.names):
        raise GatecError("a first state that enters no later step")
    types = tuple(x.dtype for x in region.examples)
    plan = scan.Plan(tuple(names), types, first, states.dim(), dim % states.dim(), reverse)
    kernel = scan.render(region.name, origin(region), of_a, of_b, plan)
    pull = Adjoint(plan, decay, new, pull_of(decay.run, of_a), pull_of(new.run, of_b))
    return Keeping(
        kernel, plan.operands, pull, {"kernel": kernel.forward}, {"kernel": partial(_backward, kernel)},
        torch.empty_like, Itself(region.function()), {},
    )  # fmt: skip


MAKERS["scan"] = made


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The gradients in torch's own operators: the scan backwards over the states' gradients, then through both parts."""

    plan: scan.Plan
    decay: Piece
    new: Piece
    of_decay: Run
    of_new: Run

    def __call__(self, grad: Tensor, h: Tensor, *xs: Tensor, needs: Sequence[bool]) -> list[Tensor]:
        known, plan = dict(zip(self.plan.operands, xs, strict=True)), self.plan
        first = known.get(plan.first or "")
        beside = [[known[n] for n in p.names] for p in (self.decay, self.new)]
        a, b = (p.run(*given) for p, given in zip((self.decay, self.new), beside, strict=True))
        dh = adjoint(a, grad.to(h.dtype), plan.dim, plan.reverse)
        da = (dh * earlier(h, first, plan.dim, plan.reverse)).sum_to_size(a.shape)
        found: dict[str, Tensor] = {}
        if first is not None:
            found[str(plan.first)] = of_first(a, dh, first, plan.dim, plan.reverse).to(first.dtype)
        slopes = (da.to(a.dtype), dh.sum_to_size(b.shape).to(b.dtype))
        pulls = (self.of_decay, self.of_new)
        for names, pull, slope, given in zip((self.decay.names, self.new.names), pulls, slopes, beside, strict=True):
            gather(found, names, pull(slope, *given), known)
        return [found[n] for n, needed in zip(plan.operands, needs, strict=True) if needed]


def _backward(kernel: Kernel, grad: Tensor, kept: Tensor, *operands: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    found: Any = kernel.load().backward(grad, *operands, needs=tuple(needs), kept=kept)
    return [g for g, needed in zip(found, needs, strict=True) if needed]
