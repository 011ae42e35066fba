"""Gated linear attention, computed in chunks: matrix products within a chunk, a recurrence between chunks.

Yang, Wang, Shen, Panda and Kim, "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
arXiv:2312.06635.

    gk_t = logsigmoid(W2 W1 x_t + b) / 16
    S_t  = diag(exp(gk_t)) S_{t-1} + k_t^T v_t
    o_t  = K^(-1/2) q_t S_t
    y    = W_o(RMSNorm(o) * swish(W_g x))             a norm per head

With B = cumsum(gk) in a chunk:  o = (q exp(B)) S + tril((q exp(B)) (k exp(-B))^T) v.
x, y: batch, time, width;  q, k, gk: batch, heads, time, K;  v, o: batch, heads, time, V.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 1), ("glu", 2)]


def chunk_gla(q, k, v, gk, chunk=4):
    time = q.shape[2]
    q, k, v, gk = (F.pad(x, (0, 0, 0, -time % chunk)) for x in (q, k, v, gk))
    q, k, v, gk = (x.view(*x.shape[:2], x.shape[2] // chunk, chunk, x.shape[3]) for x in (q, k, v, gk))

    b = gk.cumsum(dim=3)
    last = b[:, :, :, -1:]
    q = q * k.shape[-1] ** -0.5 * b.exp()
    k_inner, k_outer = k * (-b).exp(), k * (last - b).exp()
    decay = last.exp().transpose(-1, -2)

    inner = (q @ k_inner.transpose(-1, -2)).tril() @ v
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outs = []
    for n in range(q.shape[2]):
        outs.append(inner[:, :, n] + q[:, :, n] @ state)
        state = decay[:, :, n] * state + k_outer[:, :, n].transpose(-1, -2) @ v[:, :, n]
    return torch.cat(outs, dim=2)[:, :, :time]


class GatedLinearAttention(nn.Module):
    def __init__(self, width, heads, expand_k=0.5, low_rank=4):
        super().__init__()
        self.heads, k_dim = heads, int(width * expand_k)
        self.q_proj, self.k_proj = nn.Linear(width, k_dim, bias=False), nn.Linear(width, k_dim, bias=False)
        self.v_proj, self.g_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(width, low_rank, bias=False), nn.Linear(low_rank, k_dim))
        self.g_norm = nn.RMSNorm(width // heads)
        self.o_proj = nn.Linear(width, width, bias=False)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x):
        gk = F.logsigmoid(self.gk_proj(x)) / 16
        o = chunk_gla(*map(self.split, (self.q_proj(x), self.k_proj(x), self.v_proj(x), gk)))
        o = self.g_norm(o.transpose(1, 2)).flatten(2)
        return self.o_proj(o * F.silu(self.g_proj(x)))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn = GatedLinearAttention(width, heads)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def module():
    return Layer(width=24, heads=2)


def inputs(batch, length):
    return (torch.randn(batch, length, 24),)
