"""Lina-Speech: gated linear attention over audio codes; a voice is cloned by training the initial state alone.

Lemerle, Guichoux, Roebel and Obin, "Lina-Speech: Gated Linear Attention and Initial-State Tuning for Multi-Sample
Prompting Text-To-Speech Synthesis", 2024, arXiv:2410.23320.

    gk_t = logsigmoid(W2 W1 x_t) / 16                 -20 where another sample starts
    S_t  = diag(exp(gk_t)) S_{t-1} + k_t^T v_t        S_0 a parameter;  o_t = q_t S_t
    out  = W_o(RMSNorm(o) * swish(W_g x))

x: batch, frames, width;  q, k, gk: batch, frames, heads, K;  v, o: batch, frames, heads, V;  S: batch, heads, K, V.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 1), ("glu", 1)]


class GLA(nn.Module):
    def __init__(self, width, heads, k_dim, v_dim):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, heads * k_dim, bias=False), nn.Linear(width, heads * k_dim, bias=False)
        self.v, self.g = nn.Linear(width, heads * v_dim, bias=False), nn.Linear(width, heads * v_dim, bias=False)
        self.gk = nn.Sequential(nn.Linear(width, 4, bias=False), nn.Linear(4, heads * k_dim))
        self.norm, self.out = nn.RMSNorm(v_dim), nn.Linear(heads * v_dim, width, bias=False)
        self.initial = nn.Parameter(torch.zeros(heads, k_dim, v_dim))

    def forward(self, x, starts):
        q, k, v, gk = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v, self.gk))
        q = q * q.shape[-1] ** -0.5
        gk = (F.logsigmoid(gk) / 16).masked_fill(starts[:, :, None, None], -20.0)
        state, outs = self.initial.expand(x.shape[0], -1, -1, -1), []
        for q_t, k_t, v_t, gk_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), gk.unbind(1), strict=True):
            state = gk_t.exp().unsqueeze(-1) * state + torch.einsum("bhk,bhv->bhkv", k_t, v_t)
            outs.append(torch.einsum("bhk,bhkv->bhv", q_t, state))
        o = self.norm(torch.stack(outs, dim=1)).flatten(2)
        return self.out(o * F.silu(self.g(x))), state


class Decoder(nn.Module):  # the next code of each frame, and the state for the next call
    def __init__(self, codes=64, width=24):
        super().__init__()
        self.embed, self.norm = nn.Embedding(codes, width), nn.LayerNorm(width)
        self.mixer, self.head = GLA(width, heads=2, k_dim=6, v_dim=12), nn.Linear(width, codes)

    def forward(self, codes, starts):
        x = self.embed(codes)
        y, state = self.mixer(self.norm(x), starts)
        return self.head(x + y), state


def module():
    return Decoder()


def inputs(batch, length):
    return torch.randint(64, (batch, length)), torch.rand(batch, length) < 0.2
