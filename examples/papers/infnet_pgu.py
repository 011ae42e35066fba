"""INFNet's proxy gated units: a few proxies, which read all other tokens, gate the tokens of their own type.

Li et al., "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", 2025,
arXiv:2508.11565.

    Xp = CrossAttn(q=proxies, kv=tokens of the other types)
    PGU(X, Xp) = X * sigmoid(MLP(flatten(Xp)))[:, None, :]

X: batch, n tokens of one type, d;  Xp: batch, p proxies, d.  Types are fields, behaviour, and one token per task.
"""

import torch
from torch import nn

GATES = [("modulation", 3)]


class ProxyGatedUnit(nn.Module):
    def __init__(self, width, proxies):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(proxies * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, tokens, proxies):
        return tokens * torch.sigmoid(self.mlp(proxies.flatten(start_dim=1)))[:, None, :]


class InformationFlow(nn.Module):
    def __init__(self, width, proxies, types):
        super().__init__()
        self.proxies = nn.ParameterList(nn.Parameter(torch.randn(proxies, width)) for _ in range(types))
        self.read = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(types))
        self.units = nn.ModuleList(ProxyGatedUnit(width, proxies) for _ in range(types))

    def forward(self, groups):
        out = []
        for i, (start, read, unit) in enumerate(zip(self.proxies, self.read, self.units, strict=True)):
            others = torch.cat([g for j, g in enumerate(groups) if j != i], dim=1)
            proxies, _ = read(start.expand(len(others), -1, -1), others, others, need_weights=False)
            out.append(unit(groups[i], proxies))
        return out


class Tokens(nn.Module):
    def __init__(self, vocabulary, width, tasks):
        super().__init__()
        self.embed, self.tasks = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(tasks, width))
        self.flow = InformationFlow(width, proxies=2, types=3)

    def forward(self, fields, behaviour):
        tasks = self.tasks.expand(len(fields), -1, -1)
        return self.flow([self.embed(fields), self.embed(behaviour), tasks])


def module():
    return Tokens(vocabulary=40, width=16, tasks=2)


def inputs(batch, length):  # length: steps of the behaviour sequence
    return torch.randint(40, (batch, 4)), torch.randint(40, (batch, length))
