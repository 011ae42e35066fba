"""Gated attention (G1): a sigmoid gate on what scaled dot-product attention returns, before the output projection.

Qiu et al., "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", 2025,
arXiv:2505.06708.

    y = W_o (SDPA(q, k, v) * sigmoid(W_g x))

x, y: batch, tokens, width;  the gate: batch, tokens, heads, head width (elementwise), or one number per head
(headwise). W_g are further rows of the query projection: per group of heads that share keys, [queries | gates].
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("attention-output", 2), ("glu", 2)]
VARIANTS = [{"headwise": True}]


def rotate(x, base=10000.0):  # batch, heads, tokens, head width
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device).unsqueeze(1) * frequency
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


class Attention(nn.Module):
    def __init__(self, hidden_size, heads, kv_heads, headwise):
        super().__init__()
        self.head_dim, self.kv_heads, self.groups = hidden_size // heads, kv_heads, heads // kv_heads
        self.gate_dim = 1 if headwise else self.head_dim
        self.q_proj = nn.Linear(hidden_size, heads * (self.head_dim + self.gate_dim), bias=False)
        self.k_proj = nn.Linear(hidden_size, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)

    def forward(self, hidden_states):
        b, t, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(b, t, self.kv_heads, -1)
        q, gate = torch.split(q, [self.head_dim * self.groups, self.gate_dim * self.groups], dim=-1)
        gate = gate.reshape(b, t, -1, self.gate_dim)
        q = self.q_norm(q.reshape(b, t, -1, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).view(b, t, -1, self.head_dim)).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, t, -1, self.head_dim).transpose(1, 2)
        o = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        o = o.transpose(1, 2) * torch.sigmoid(gate)
        return self.o_proj(o.reshape(b, t, -1))


class DecoderLayer(nn.Module):
    def __init__(self, hidden_size, heads, kv_heads, headwise):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(hidden_size)
        self.self_attn = Attention(hidden_size, heads, kv_heads, headwise)
        self.gate_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.down_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def module(headwise=False):
    layers = (DecoderLayer(32, heads=4, kv_heads=2, headwise=headwise) for _ in range(2))
    return nn.Sequential(nn.Embedding(50, 32), *layers, nn.RMSNorm(32), nn.Linear(32, 50, bias=False))


def inputs(batch, length):
    return (torch.randint(50, (batch, length)),)
