"""Copies of an MLP as experts: whole ones, or cut into shards of the same units."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from gatec.errors import GatecError
from gatec.moe.splitting import divisors


def check(experts: object, top_k: object, shards: object, width: int, noise: object, hint: str) -> None:
    """Refuse numbers of copies, of copies per token and of shards that make no mixture of an MLP of `width` units."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in (experts, top_k, shards))
    if not whole or not top_k <= experts:  # type: ignore[operator]
        raise GatecError("1 <= top_k <= experts, and shards of at least 1", hint=hint,
                         found=f"experts={experts}, top_k={top_k}, shards={shards}")  # fmt: skip
    if not isinstance(noise, (int, float)) or not 0 <= noise <= 1:
        raise GatecError("noise as a share from 0 to 1", found=f"noise={noise}", hint=hint)
    if width % shards:  # type: ignore[operator]
        raise GatecError(
            f"shards that divide {width} hidden units", found=f"shards={shards}", hint=f"one of {divisors(width)}"
        )


def seeded(seed: int, *names: str) -> torch.Generator:
    """Random numbers that are the same for the same seed and place everywhere, and others for another place."""
    return torch.Generator().manual_seed(zlib.crc32(" ".join([str(seed), *names]).encode()))


def alike(copies: int, shards: int, width: int, std: float, generator: torch.Generator) -> Tensor:
    """First router rows [copies * shards, width]: random, and the same for the shards of one copy.

    So that the largest scores are those of whole copies.
    """
    return (torch.randn(copies, width, generator=generator) * std).repeat_interleave(shards, 0)


def redrawn(weights: list[Tensor], share: float, generator: torch.Generator) -> None:
    """Draw a share of the hidden units of every expert anew, by the mean and deviation of each weight.

    `weights` hold experts first and units second; the same units are drawn in all of them.
    Nakamura et al. 2025, "Drop-Upcycling", https://arxiv.org/abs/2502.19261
    """
    experts, units = weights[0].shape[:2]
    for expert in range(experts):
        some = torch.randperm(units, generator=generator)[: round(share * units)]
        for weight in weights:
            old = weight[expert].float()
            new = torch.randn(len(some), *old.shape[1:], generator=generator).to(old.device) * old.std() + old.mean()
            weight[expert, some.to(weight.device)] = new.to(weight)
