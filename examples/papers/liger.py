"""Liger: a pretrained Llama made recurrent without new parameters; the key projection also makes the forget gate.

Lan, Sun, Hu, Du and Cheng, "Liger: Linearizing Large Language Models to Gated Recurrent Structures", 2025,
arXiv:2503.01496.

    k = W_k x,  g = AdaptiveAvgPool(k),  gk = logsigmoid(g) / 16
    GLA: S_t = diag(exp(gk_t)) S_{t-1} + softmax(k_t)^T v_t,   o_t = softmax(q_t) S_t
    o = 0.5 * GLA(q, k, v, gk) + 0.5 * SlidingWindowAttention(RoPE(q), RoPE(k), v)
    y = W_o o

x, y: batch, time, width;  q, k, v, gk: batch, heads, time, K. Here the recurrence is in its parallel form:
o = tril((q exp(B)) (k exp(-B))^T) v with B = cumsum(gk).
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 1), ("glu", 1)]


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def rope(x):
    time, k = x.shape[-2:]
    inv_freq = 10000.0 ** (-torch.arange(0, k, 2, device=x.device) / k)
    angles = torch.outer(torch.arange(time, device=x.device), inv_freq).repeat(1, 2)
    return x * angles.cos() + rotate_half(x) * angles.sin()


def parallel_gla(q, k, v, gk):
    B = gk.cumsum(2)
    A = (q * B.exp()) @ (k * (-B).exp()).transpose(-1, -2)
    return A.tril() @ v


def window_attention(q, k, v, window):
    positions = torch.arange(q.shape[2], device=q.device)
    back = positions[:, None] - positions[None, :]
    mask = (back >= 0) & (back < window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class LigerAttention(nn.Module):
    def __init__(self, hidden_size, num_heads, num_key_value_heads, window):
        super().__init__()
        self.head_dim, self.groups, self.window = hidden_size // num_heads, num_heads // num_key_value_heads, window
        kv_dim = num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, kv_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv_dim, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pool_g = nn.AdaptiveAvgPool1d(kv_dim)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        gk = F.logsigmoid(self.pool_g(k)) / 16
        q, k, v, gk = (t.view(*t.shape[:2], -1, self.head_dim).transpose(1, 2) for t in (q, k, v, gk))
        k, v, gk = (t.repeat_interleave(self.groups, dim=1) for t in (k, v, gk))
        linear = parallel_gla(q.softmax(-1), k.softmax(-1), v, gk)
        window = window_attention(rope(q), rope(k), v, self.window)
        o = 0.5 * linear + 0.5 * window
        return self.o_proj(o.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, hidden_size=32, num_heads=4, num_key_value_heads=2, window=3):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.self_attn = LigerAttention(hidden_size, num_heads, num_key_value_heads, window)
        self.gate_proj = nn.Linear(hidden_size, 48, bias=False)
        self.up_proj = nn.Linear(hidden_size, 48, bias=False)
        self.down_proj = nn.Linear(48, hidden_size, bias=False)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def module():
    return DecoderLayer()


def inputs(batch, length):
    return (torch.randn(batch, length, 32),)
