"""Gated self-attention over image and grounding tokens, as in GLIGEN and SceneBooth.

Chai et al., "SceneBooth: Diffusion-based Framework for Subject-preserved Text-to-Image Generation", 2025,
arXiv:2501.03490; the layer is that of Li et al., "GLIGEN: Open-Set Grounded Text-to-Image Generation", 2023,
arXiv:2301.07093.

    h = h + s * tanh(a1) * SA(LN([h; W o]))[:, :N]
    h = h + s * tanh(a2) * FF(LN(h))

h: batch, N, width;  o: batch, M, grounding width;  a1, a2: one number each, zero at first;  s: one number in [0, 1]
that the sampler sets at each step. FF is the GEGLU layer of the latent diffusion transformer.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("residual-scale", 2), ("glu", 2)]


class GEGLU(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.proj = nn.Linear(width, hidden * 2)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


def feed_forward(width):
    return nn.Sequential(GEGLU(width, 2 * width), nn.Dropout(0.0), nn.Linear(2 * width, width))


class GatedSelfAttention(nn.Module):
    def __init__(self, width, grounding, heads):
        super().__init__()
        self.linear = nn.Linear(grounding, width)
        self.attn, self.ff = nn.MultiheadAttention(width, heads, batch_first=True), feed_forward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.alpha_attn, self.alpha_dense = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x, objs, scale):
        n_visual = x.shape[1]
        h = self.norm1(torch.cat([x, self.linear(objs)], dim=1))
        h = self.attn(h, h, h, need_weights=False)[0]
        x = x + scale * torch.tanh(self.alpha_attn) * h[:, :n_visual]
        return x + scale * torch.tanh(self.alpha_dense) * self.ff(self.norm2(x))


class TransformerBlock(nn.Module):
    """The block of the frozen diffusion model, with the new layer in it."""

    def __init__(self, width, grounding, heads=2):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fuser, self.ff = GatedSelfAttention(width, grounding, heads), feed_forward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, objs, scale):
        h = self.norm1(x)
        x = self.attn(h, h, h, need_weights=False)[0] + x
        x = self.fuser(x, objs, scale)
        return self.ff(self.norm2(x)) + x


def module():
    return TransformerBlock(width=16, grounding=10)


def inputs(batch, length):  # length: image tokens
    return torch.randn(batch, length, 16), torch.randn(batch, 3, 10), torch.rand(())
