"""FoldGPT's depth pruning: a polarising gate of one learned number in front of each block of a decoder.

Liu et al., "FoldGPT: Simple and Effective Large Language Model Compression Scheme", 2024, arXiv:2407.00928.

    x = x + g * Block(x),   g = theta^2 / (theta^2 + eps),   loss = LM + lambda * (sum of g - budget)

x: batch, tokens, width;  theta: one number per block, the only thing that is trained while blocks are ranked.
Underspecified: the gate is the smoothed L0 form of Guo et al., "GDP", 2021, the budget enters linearly; a small Llama.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("residual-scale", 3), ("glu", 3)]


class Block(nn.Module):  # what a decoder layer adds to the stream
    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        y, shape = self.norm1(x), (*x.shape[:-1], self.heads, -1)
        q, k, v = (p(y).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        h = self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape))
        y = self.norm2(x + h)
        return h + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Decoder(nn.Module):
    def __init__(self, vocabulary, width, layers, eps=1e-3):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.layers, self.norm = nn.ModuleList(Block(width) for _ in range(layers)), nn.RMSNorm(width)
        self.theta, self.eps = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(layers)), eps

    def gates(self):
        return [theta**2 / (theta**2 + self.eps) for theta in self.theta]

    def forward(self, ids):
        x = self.embed(ids)
        for g, layer in zip(self.gates(), self.layers, strict=True):
            x = x + g * layer(x)
        return self.head(self.norm(x))

    def budget_loss(self, budget, weight=1e-2):
        return weight * (sum(self.gates()) - budget)


def module():
    return Decoder(vocabulary=40, width=16, layers=3)


def inputs(batch, length):
    return (torch.randint(40, (batch, length)),)
