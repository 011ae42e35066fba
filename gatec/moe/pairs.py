"""Tokens with their experts as pairs, expert by expert: gathered, taken through grouped products, and summed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gatec.grouped import grouped_linear
from gatec.moe.router import Router


@dataclass(frozen=True)
class Pairs:
    """Values of a graph that is being written, or tensors.

    token    the token of each pair; pairs lie expert by expert
    expert   the expert of each pair
    ends     where each expert's pairs end
    weight   what each pair counts, [pairs, 1]
    back     where the pairs of each token are, [tokens * top_k]; None where tokens differ in how many they have
    live     which pairs there are, [pairs, 1], where their number depends on values and room is made for the most
    """

    token: Any
    expert: Any
    ends: Any
    weight: Any
    back: Any = None
    live: Any = None
    top_k: int = 0

    def gather(self, x: Any) -> Any:
        return self._only_live(x[self.token])

    def linear(self, rows: Any, weight: Any, bias: Any = None) -> Any:
        """Each pair through the layer of its expert: weight[experts, out, in], bias[experts, out]."""
        out = self._only_live(grouped_linear(rows, weight, self.ends))
        return out if bias is None else out + bias[self.expert]

    def weighed(self, rows: Any) -> Any:
        """Each pair times what it counts: before an expert's last product this is cheaper than after it, and the same."""
        return rows * self.weight

    def combine(self, out: Any, x: Any) -> Any:
        """The sum of the pairs of each token of x[tokens, width], which are weighed already."""
        if self.back is None:
            return out.new_zeros(x.shape[0], out.shape[1]).index_add(0, self.token, out)
        # Rows in another order, none of them twice: on a CPU this takes half the time of out[back].
        return out.index_select(0, self.back).unflatten(0, (-1, self.top_k)).sum(1)

    def _only_live(self, rows: Any) -> Any:
        """Rows behind the last end hold nothing, and neither do their gradients."""
        return rows if self.live is None else torch.where(self.live, rows, 0.0)


def pairs_of(routed: Any, router: Router) -> Pairs:
    """Of what a router gives."""
    if router.fixed:
        return _of_fixed(routed[0], routed[1], router)
    chosen = routed.t() != 0
    numbers = chosen.new_ones(router.experts, 1, dtype=torch.long).cumsum(0) - 1
    expert, order = torch.sort(torch.where(chosen, numbers, router.experts).flatten(), stable=True)
    ends = chosen.sum(1).cumsum(0)
    live = (expert < router.experts).unsqueeze(-1)
    weight = routed.t().flatten()[order].unsqueeze(-1)
    return Pairs(order % routed.shape[0], expert.clamp(max=router.experts - 1), ends, weight, live=live)


def _of_fixed(chosen: Any, weight: Any, router: Router) -> Pairs:
    expert, order = torch.sort(chosen.flatten(), stable=True)
    numbers = expert.new_ones(router.experts).cumsum(0) - 1
    ends = (expert.unsqueeze(-1) <= numbers).sum(0)
    weight = weight.flatten()[order].unsqueeze(-1)
    return Pairs(order // router.top_k, expert, ends, weight, torch.argsort(order), top_k=router.top_k)
