"""Partially shared recalibrating parameters: a frozen block's MLP branch scaled and shifted by a small bottleneck.

Gao, Wang, Lin, Zhu, Hu, Zhou, "Tuning Pre-trained Model via Moment Probing", 2023, arXiv:2307.11342.

    z = relu(D x)        w = U_w z        b = U_b z
    x = x + (b + (1 + w) * MLP(LN(x)))

x: batch, tokens, width;  z: batch, tokens, rank;  D, shared by both, has no bias;  U_w and U_b are zero at first.
"""

import torch
from torch import nn

GATES = [("modulation", 2)]


class PSRP(nn.Module):
    def __init__(self, width, rank):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.scale, self.shift = nn.Linear(rank, width), nn.Linear(rank, width)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        z = self.down(x).relu()
        return self.scale(z), self.shift(z)


class Block(nn.Module):
    def __init__(self, width, rank):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.psrp = PSRP(width, rank)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        w, b = self.psrp(x)
        return x + (b + (1 + w) * self.mlp(self.norm2(x)))


def module():
    return nn.Sequential(Block(24, 4), Block(24, 4))


def inputs(batch, length):  # length: patches
    return (torch.randn(batch, length, 24),)
