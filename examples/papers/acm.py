"""Adaptive computation module: ordered learners, of which each token runs as many as its gate says.

Wojcik et al., "Adaptive Computation Modules: Granular Conditional Computation for Efficient Inference", 2023,
arXiv:2312.10193.

    out_k = sum over i <= k of W2_i act(W1_i x + b1_i) + b2_i,   k in 0..K
    y = out_k with k = argmax MLP(x)

x, y: batch, tokens, width;  the gate: batch, tokens, K + 1, hard Gumbel samples while training. Learner i is in out_k
for every k >= i, so its weight is the share of the choices from i upwards. The released code sums one learner less.
The learners are distilled first, prefix by prefix; then the gates, against a budget: `compute` is k / K of each token.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 2)]
SKIPS = 8


class Learner(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class ACM(nn.Module):
    def __init__(self, width, learners, hidden):
        super().__init__()
        self.learners = nn.ModuleList(Learner(width, hidden) for _ in range(learners))
        self.gate = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, learners + 1))

    def choose(self, x):
        logits = self.gate(x)
        if self.training:
            return F.gumbel_softmax(logits, hard=True)
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).type_as(x)

    def forward(self, x):
        runs = self.choose(x).flip(-1).cumsum(-1).flip(-1)[..., 1:]  # 1 for learner i where k >= i
        y = torch.zeros_like(x)
        for learner, run in zip(self.learners, runs.split(1, dim=-1), strict=True):
            y = y + run * learner(x)
        return y, runs.mean(-1)


class Block(nn.Module):
    def __init__(self, width, learners):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.MultiheadAttention(width, 2, batch_first=True), ACM(width, learners, width)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        y, compute = self.mlp(self.norm2(x))
        return x + y, compute


class Transformer(nn.Module):
    def __init__(self, width, learners):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block(width, learners) for _ in range(2)), nn.Linear(width, 5)

    def forward(self, x):
        compute = 0
        for block in self.blocks:
            x, spent = block(x)
            compute = compute + spent / len(self.blocks)
        return self.head(x), compute


def module(experts=4):
    return Transformer(16, experts)


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
