"""StableVC's dual attention with adaptive gate control: a second cross-attention under a tanh born at zero.

Yao et al., "StableVC: Style Controllable Zero-Shot Voice Conversion with Conditional Flow Matching", 2024,
arXiv:2412.04724.

    F = Attn(q, K_timbre, V_timbre) + tanh(alpha) * Attn(q, K_style, V_style)

q: batch, frames, width, from the noisy mel spectrogram;  timbre, style: batch, prompt frames, width;
alpha: one number, zero at first. Both attentions share the query.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("residual-scale", 1)]


class DualAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.to_kv_timbre, self.to_kv_style = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.alpha = nn.Parameter(torch.zeros(1))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q, kv):
        k, v = map(self.split, kv.chunk(2, dim=-1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x, timbre, style):
        q = self.split(self.to_q(x))
        style = self.attend(q, self.to_kv_style(style))
        return self.to_out(self.attend(q, self.to_kv_timbre(timbre)) + torch.tanh(self.alpha) * style)


class Block(nn.Module):
    """Of the vector field, on embedded frames of a mel spectrogram."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dual_attn = DualAttention(width, heads)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, timbre, style):
        x = x + self.dual_attn(self.norm1(x), timbre, style)
        return x + self.ff(self.norm2(x))


def module():
    return Block(16)


def inputs(batch, length):  # length: frames
    return torch.randn(batch, length, 16), torch.randn(batch, 5, 16), torch.randn(batch, 3, 16)
