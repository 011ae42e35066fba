"""DSelect-k: k selectors, each of which names one of n experts by a smooth binary code.

Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task
Learning", 2021, arXiv:2106.03760.

    S(z) = 0 for z <= -g/2;  1 for z >= g/2;  else -2 z^3 / g^3 + 3 z / (2 g) + 1/2
    r_j[i] = prod over bits b of (S(z_jb) if bit b of i is set, else 1 - S(z_jb))
    y = sum_i (sum_j softmax(alpha)_j r_j[i]) * Expert_i(x)

z: batch, k, ceil(log2 n), a layer of x (per example), or learned numbers (static);  alpha: k, or batch x k;
r: batch, k, n. Once S is saturated at most k weights are not zero. Here task one has a gate per example, task two a
static one. Regularisers: the entropy of r, and for n that is no power of two, 1 / sum_i r_j[i].
"""

import math

import torch
from torch import nn

GATES = [("router", 1), ("mixture", 1)]


def smooth_step(z, gamma):
    inner = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
    return torch.where(z <= -gamma / 2, torch.zeros_like(z), torch.where(z >= gamma / 2, torch.ones_like(z), inner))


class DSelectK(nn.Module):
    def __init__(self, width, experts, k, static, gamma=1.0):
        super().__init__()
        self.k, self.bits, self.gamma, self.static = k, math.ceil(math.log2(experts)), gamma, static
        if static:
            self.z = nn.Parameter(torch.empty(k, self.bits).uniform_(-gamma / 100, gamma / 100))
            self.alpha = nn.Parameter(torch.zeros(k))
        else:
            self.to_z, self.to_alpha = nn.Linear(width, k * self.bits), nn.Linear(width, k)
        codes = [[i >> b & 1 for b in range(self.bits)] for i in range(experts)]
        self.register_buffer("codes", torch.tensor(codes, dtype=torch.bool))

    def forward(self, x):
        z = self.z if self.static else self.to_z(x).view(len(x), self.k, self.bits)
        alpha = self.alpha if self.static else self.to_alpha(x)
        s = smooth_step(z, self.gamma).unsqueeze(-2)
        r = torch.where(self.codes, s, 1 - s).prod(-1)  # (batch,) k, n
        return (torch.softmax(alpha, -1).unsqueeze(-1) * r).sum(-2), r


def regulariser(r, eps=1e-6):
    entropy = -(r * torch.log(r + eps)).sum(-1)
    return entropy.sum() + (1 / (r.sum(-1) + eps)).sum()


class MultiTask(nn.Module):
    def __init__(self, items, width, experts, k):
        super().__init__()
        self.embedding = nn.EmbeddingBag(items, width, mode="sum")
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.gates = nn.ModuleList(DSelectK(width, experts, k, static) for static in (False, True))
        self.towers = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))

    def forward(self, items):  # batch, items
        x = self.embedding(items)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)  # batch, n, width
        return tuple(
            tower((gate(x)[0].unsqueeze(-1) * outputs).sum(-2))
            for gate, tower in zip(self.gates, self.towers, strict=True)
        )


def module(experts=6, k=2):
    return MultiTask(20, 12, experts, k)


def inputs(batch, length):  # length: items in a user's basket
    return (torch.randint(20, (batch, length)),)
