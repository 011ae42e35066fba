"""Confidence-gated Taylor caching: the first block of a denoiser says whether the rest may be extrapolated.

Guan et al., "Forecasting When to Forecast: Accelerating Diffusion Models with Confidence-Gated Taylor", 2025,
arXiv:2508.02240; the expansion is that of TaylorSeer (Liu et al., 2025).

    F_hat = sum_{i<=m} D^i F (-k)^i / (i! N^i)              forecast k steps after the last full one
    e     = ||F1_hat - F1|| / ||F1||
    F_last = F_last_hat  if e < tau  else  blocks(F1)       in the second case the cache is renewed, and k = 0

F1, F_last: batch, tokens, width, what the first and the last block return;  D^i F: their cached differences, batch,
m + 1, tokens, width, taken between full steps N apart;  e: batch;  tau = 0 computes all. Which blocks are cached is a
reading: the first and the last, to second order. No training; one call here is one step of the sampler, which carries
the cache along.
"""

import math

import torch
from torch import nn

GATES = [("exit", 1)]
SKIPS = 1
ORDER, INTERVAL = 2, 3


def forecast(differences, k):
    powers = torch.stack([(-k / INTERVAL) ** i / math.factorial(i) for i in range(ORDER + 1)], dim=1)
    return (powers[:, :, None, None] * differences).sum(dim=1)


def renewed(differences, value):
    """The finite differences after a full step."""
    found = [value]
    for i in range(ORDER):
        found.append(found[-1] - differences[:, i])
    return torch.stack(found, dim=1)


class Block(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Denoiser(nn.Module):
    def __init__(self, channels, width, depth=4, tau=0.1):
        super().__init__()
        self.tau = tau
        self.embed, self.time = nn.Linear(channels, width), nn.Linear(1, width)
        self.first, *rest = [Block(width) for _ in range(depth)]
        self.rest = nn.Sequential(*rest)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, channels)

    def forward(self, latents, time, k, first_cache, last_cache):
        first = self.first(self.embed(latents) + torch.sin(self.time(time[:, None]))[:, None])
        error = (forecast(first_cache, k) - first).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)
        sure = error < self.tau
        last, guess = self.rest(first), forecast(last_cache, k)
        skip = sure[:, None, None]
        out = self.head(self.norm(torch.where(skip, guess, last)))
        keep = skip.unsqueeze(-1)
        first_cache = torch.where(keep, first_cache, renewed(first_cache, first))
        last_cache = torch.where(keep, last_cache, renewed(last_cache, last))
        return out, torch.where(sure, k + 1, torch.ones_like(k)), first_cache, last_cache


def module():
    return Denoiser(channels=4, width=16)


def inputs(batch, length):
    cache = torch.randn(2, batch, ORDER + 1, length, 16)
    k = torch.randint(1, INTERVAL, (batch,)).float()
    return torch.randn(batch, length, 4), torch.rand(batch), k, cache[0], cache[1]
