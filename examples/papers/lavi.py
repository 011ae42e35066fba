"""LaVi's vision-infused layer norm: what a token sees in the image moves the norm's weight and bias.

Yue et al., "LaVi: Efficient Large Vision-Language Models via Internal Feature Modulation", 2025, arXiv:2506.16691.

    (dgam, dbet)_t = Cond(h_t, v)
    ViLN(h)_t = (gam + dgam_t) * norm(h_t) + (bet + dbet_t)

h: batch, tokens, width;  v: batch, visual tokens, visual width;  dgam, dbet: batch, tokens, width.
The paper names several networks for Cond; here it is a two-layer MLP on h_t and the visual tokens that h_t attends to,
its last layer zero at first, so that a text model starts as it was. Without an image the norm is a plain one.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("modulation", 1)]


class ViLN(nn.Module):
    def __init__(self, width, visual):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.query, self.key, self.value = (nn.Linear(w, width) for w in (width, visual, visual))
        self.cond = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 2 * width))
        nn.init.zeros_(self.cond[2].weight)
        nn.init.zeros_(self.cond[2].bias)

    def deltas(self, h, v):
        seen = F.scaled_dot_product_attention(self.query(h), self.key(v), self.value(v))
        return self.cond(torch.cat([h, seen], dim=-1)).chunk(2, dim=-1)

    def forward(self, h, v=None):
        if v is None:
            return F.layer_norm(h, self.gamma.shape, self.gamma, self.beta)
        dgamma, dbeta = self.deltas(h, v)
        mean, var = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
        return (self.gamma + dgamma) * ((h - mean) * torch.rsqrt(var + 1e-5)) + (self.beta + dbeta)


class Layer(nn.Module):
    def __init__(self, width, visual):
        super().__init__()
        self.norm1, self.norm2 = ViLN(width, visual), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, image=None):
        q, k, v = self.qkv(self.norm1(x, image)).chunk(3, dim=-1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.mlp(self.norm2(x))


def module():
    return Layer(width=16, visual=12)


def inputs(batch, length):  # length: text tokens
    return torch.randn(batch, length, 16), torch.randn(batch, 5, 12)
