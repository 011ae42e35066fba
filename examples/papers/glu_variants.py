"""GLU feed-forward layers: SwiGLU, GEGLU, ReGLU, GLU and Bilinear.

Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.

    FFN(x) = (act(x W) * (x V)) W2

x: batch, length, width;  W, V: width x hidden;  W2: hidden x width;  no biases.
act is SiLU, GELU, ReLU, sigmoid or the identity. hidden is 2/3 of a plain layer's, for equal parameters.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("glu", 2)]
VARIANTS = [{"act": F.gelu}, {"act": F.relu}, {"act": torch.sigmoid}, {"act": None}]


class FeedForward(nn.Module):
    def __init__(self, width, hidden, act):
        super().__init__()
        self.w = nn.Linear(width, hidden, bias=False)
        self.v = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.act = act

    def forward(self, x):
        hidden = self.w(x) if self.act is None else self.act(self.w(x))
        return self.w2(hidden * self.v(x))


class Layer(nn.Module):
    """T5's order: normalised before each sublayer, added after it."""

    def __init__(self, width, act):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, bias=False, batch_first=True)
        self.ffn = FeedForward(width, width * 8 // 3, act)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.ffn(self.norm2(x))


def module(act=F.silu):
    return nn.Sequential(Layer(24, act), Layer(24, act))


def inputs(batch, length):
    return (torch.randn(batch, length, 24),)
