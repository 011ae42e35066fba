"""Gated memory unit: a later layer reads the token-mixed memory of an earlier one through an elementwise gate.

Ren et al., "Decoder-Hybrid-Decoder Architecture for Efficient Reasoning with Long Generation", 2025, arXiv:2507.06607
(SambaY, Phi4-mini-flash).

    y = W2 (silu(W1 x) * m)

x: batch, length, width;  m: batch, length, inner: what the state space layer of the lower half made, before its own
gate;  W1: width x inner;  W2: inner x width;  no biases. It stands where the upper half would have cross-attention.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 1), ("glu", 2)]  # the scan; Mamba's own gate and the memory unit


class Mamba(nn.Module):
    def __init__(self, width, inner, state=4, rank=2):
        super().__init__()
        self.state, self.rank = state, rank
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1).float().repeat(inner, 1).log())
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        dt, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        decay = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.A_log))
        taken = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
        h, ys = u.new_zeros(u.shape[0], u.shape[2], self.state), []
        for t in range(u.shape[1]):
            h = decay[:, t] * h + taken[:, t]
            ys.append((h * C[:, t].unsqueeze(1)).sum(-1))
        memory = torch.stack(ys, dim=1) + u * self.D
        return self.out_proj(memory * F.silu(z)), memory


class GMU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x, memory):
        return self.w2(F.silu(self.w1(x)) * memory)


class Decoder(nn.Module):
    def __init__(self, vocabulary=32, width=16, inner=24):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.mamba, self.gmu = Mamba(width, inner), GMU(width, inner)

    def forward(self, ids):
        x = self.embed(ids)
        mixed, memory = self.mamba(self.norms[0](x))
        x = x + mixed
        x = x + self.gmu(self.norms[1](x), memory)
        return self.norms[2](x) @ self.embed.weight.T


def module():
    return Decoder()


def inputs(batch, length):
    return (torch.randint(32, (batch, length)),)
