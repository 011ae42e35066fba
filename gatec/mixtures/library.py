"""A mixture by the library's grouped products, with its function between them: forward, what is kept, and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatec.grouped import linear_op, outer_op
from gatec.kernels.grouped import Experts, Matrix
from gatec.making import Run


class Sorted(NamedTuple):
    """Pairs by expert: whose each is, its number, its token, where each expert's end, and where each pair went."""

    expert: Tensor
    order: Tensor
    token: Tensor
    ends: Tensor
    back: Tensor


def sorted_by(chosen: Tensor, experts: int) -> Sorted:
    expert, order = torch.sort(chosen.flatten(), stable=True)
    ends = torch.searchsorted(expert, torch.arange(experts, device=expert.device, dtype=expert.dtype), right=True)
    return Sorted(expert, order, order // chosen.shape[-1], ends, torch.argsort(order))


@dataclass(frozen=True, eq=False)
class Library:
    """`gate` is the function between the products and `pulls(grad, *totals)` its gradients."""

    plan: Experts
    gate: Run
    pulls: Run

    def named(self, operands: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.plan.operands, operands, strict=True))

    def room(self, *operands: Tensor) -> Tensor:
        """Memory for the accumulators."""
        x, chosen = operands[:2]
        down = self.named(operands)["down"]
        width = down.shape[1 if self.plan.down.turned else 2]
        return x.new_empty((len(self.plan.firsts), chosen.numel(), width))

    def blank(self, *operands: Tensor) -> Tensor:
        """The form of the result."""
        x, _, scale = operands[:3]
        width = self.named(operands)["down"].shape[2 if self.plan.down.turned else 1]
        return x.new_empty((x.shape[0], width), dtype=torch.promote_types(x.dtype, scale.dtype))

    def keep(self, *operands: Tensor) -> tuple[Tensor, Tensor]:
        known = self.named(operands)
        x, chosen, scale = operands[:3]
        at = sorted_by(chosen, known["down"].shape[0])
        totals = self.totals(known, x[at.token], at)
        out = _biased(_product(self.gate(*totals), known, self.plan.down, at), known, self.plan.down, at)
        pairs = (out * scale.flatten()[at.order].unsqueeze(-1))[at.back]
        return pairs.unflatten(0, (-1, chosen.shape[-1])).sum(1), torch.stack(totals)

    def __call__(self, *operands: Tensor) -> Tensor:
        return self.keep(*operands)[0]

    def totals(self, known: Mapping[str, Tensor], rows: Tensor, at: Sorted) -> list[Tensor]:
        """What the function takes: one product for all that lies in one operand."""
        whole: dict[str, Tensor] = {}
        for m in self.plan.firsts:
            if m.weight not in whole:
                whole[m.weight] = _biased(_product(rows, known, m, at), known, m, at)
        return [_columns(whole[m.weight], m) for m in self.plan.firsts]

    def pull(self, grad: Tensor, kept: Tensor, *operands: Tensor, needs: Sequence[bool]) -> list[Tensor]:
        known = self.named(operands)
        x, chosen, scale = operands[:3]
        at, totals, down = sorted_by(chosen, known["down"].shape[0]), kept.unbind(0), self.plan.down
        rows, grads, weight = x[at.token], grad.to(x.dtype)[at.token], scale.flatten()[at.order].unsqueeze(-1)
        hidden, slope = self.gate(*totals), _product(grads, known, down, at, back=True)
        slopes = self._packed(known, self.pulls((slope * weight).to(x.dtype), *totals))
        weighed = (grads * weight).to(x.dtype)
        found: dict[str, Any] = {
            "x": lambda: _back(sum(_product(s, known, m, at, back=True) for m, s in slopes), at, chosen),
            "scale": lambda: self._shares(known, hidden, slope, grads, at).to(scale.dtype).view(scale.shape),
            "down": lambda: _weight_gradient(down, weighed, hidden, at),
            "down_bias": lambda: _bias_gradient(weighed, at),
        }
        for m, s in slopes:
            found[m.weight] = lambda m=m, s=s: _weight_gradient(m, s, rows, at)
            found[str(m.bias)] = lambda s=s: _bias_gradient(s, at)
        wanted = (n for n, needed in zip(self.plan.operands, needs, strict=True) if needed)
        return [found[name]() for name in wanted]

    def _packed(self, known: Mapping[str, Tensor], parts: Sequence[Tensor]) -> list[tuple[Matrix, Tensor]]:
        """For each operand with matrices the gradient of its product, all columns side by side."""
        whole: dict[str, tuple[Matrix, Tensor]] = {}
        for m, part in zip(self.plan.firsts, parts, strict=True):
            if m.weight not in whole:
                width = known[m.weight].shape[2 if m.turned else 1]
                whole[m.weight] = m, part.new_empty(len(part), width)
            _columns(whole[m.weight][1], m).copy_(part)
        return list(whole.values())

    def _shares(self, known: Mapping[str, Tensor], hidden: Tensor, slope: Tensor, grads: Tensor, at: Sorted) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        shares = (slope * hidden).sum(-1, dtype=wide)
        if self.plan.down.bias:
            shares = shares + (grads * known["down_bias"][at.expert]).sum(-1, dtype=wide)
        return shares[at.back]


def _columns(whole: Tensor, m: Matrix) -> Tensor:
    return whole[:, slice(*m.rows)] if m.rows else whole


def _product(x: Tensor, known: Mapping[str, Tensor], m: Matrix, at: Sorted, *, back: bool = False) -> Tensor:
    weight = known[m.weight]
    found: Tensor = linear_op(x, weight.transpose(1, 2) if m.turned != back else weight, at.ends)
    return found


def _biased(total: Tensor, known: Mapping[str, Tensor], m: Matrix, at: Sorted) -> Tensor:
    return total + known[m.bias][at.expert] if m.bias else total


def _back(rows: Any, at: Sorted, chosen: Tensor) -> Tensor:
    """The sum over each token's pairs."""
    found: Tensor = rows[at.back].unflatten(0, (-1, chosen.shape[-1])).sum(1)
    return found


def _weight_gradient(m: Matrix, slope: Tensor, rows: Tensor, at: Sorted) -> Tensor:
    found: Tensor = outer_op(slope, rows, at.ends)
    return found.transpose(1, 2) if m.turned else found


def _bias_gradient(slope: Tensor, at: Sorted) -> Tensor:
    wide = slope.to(torch.promote_types(slope.dtype, torch.float32))
    sums = wide.new_zeros(len(at.ends), slope.shape[1]).index_add_(0, at.expert, wide)
    return sums.to(slope.dtype)
