"""Tokens with their experts as pairs, expert by expert: gathered, taken through grouped products, and summed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gatec.moe.routers import Router


@dataclass(frozen=True)
class Pairs:
    """Values of a graph that is being written, or tensors.

    token    the token of each pair; pairs lie expert by expert
    expert   the expert of each pair
    ends     where each expert's pairs end
    weight   what each pair counts, [pairs, 1]
    back     where the pairs of each token are, [tokens * top_k]; None where tokens differ in how many they have
    """

    token: Any
    expert: Any
    ends: Any
    weight: Any
    back: Any = None
    top_k: int = 0

    def gather(self, x: Any) -> Any:
        return x[self.token]

    def combine(self, out: Any, x: Any) -> Any:
        """The sum of each token's pairs, in the shape of x[tokens, width]."""
        out = out * self.weight
        if self.back is None:
            return torch.zeros_like(x).index_add(0, self.token, out)
        return out[self.back].unflatten(0, (-1, self.top_k)).sum(1)


def pairs_of(routed: Any, router: Router) -> Pairs:
    """Of what a router gives."""
    if router.fixed:
        return _of_fixed(routed[0], routed[1], router)
    chosen = routed.t() != 0
    found = chosen.nonzero()
    expert, token = found[:, 0], found[:, 1]
    return Pairs(token, expert, chosen.sum(1).cumsum(0), routed[token, expert].unsqueeze(-1))


def _of_fixed(chosen: Any, weight: Any, router: Router) -> Pairs:
    expert, order = torch.sort(chosen.flatten(), stable=True)
    numbers = expert.new_ones(router.experts).cumsum(0) - 1
    ends = (expert.unsqueeze(-1) <= numbers).sum(0)
    weight = weight.flatten()[order].unsqueeze(-1)
    return Pairs(order // router.top_k, expert, ends, weight, torch.argsort(order), router.top_k)
