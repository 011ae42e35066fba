"""BaseConv: a short causal convolution times a linear map; and attention only where a token asks for it.

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", 2023, arXiv:2312.04927.

    y = conv(u) * (W u + b) + u
    s = sigmoid(w u),   out = s * attention(u);   at evaluation only the sqrt(T) tokens with the largest s

u, y: batch, length, width;  conv: causal, depthwise, three taps;  s: batch, length, 1. The hybrid adds the second line
to a stack of the first, and to the loss 1e-3 * relu(mean(s) - n / T), n the number of tokens that it may ask for.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("token-mixing", 2), ("hard", 1)]


class BaseConv(nn.Module):
    def __init__(self, d_model, kernel_size=3):
        super().__init__()
        self.projection = nn.Linear(d_model, d_model)
        self.conv = nn.Conv1d(d_model, d_model, kernel_size, groups=d_model, padding=kernel_size - 1)

    def forward(self, u):
        conv = self.conv(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        return conv * self.projection(u) + u


class SelectiveLookup(nn.Module):
    def __init__(self, d_model, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.out_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.select = nn.Linear(d_model, 1)

    def forward(self, u):
        b, t, d = u.shape
        q, k, v = self.qkv(u).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        s = torch.sigmoid(self.select(u))
        gate = s
        if not self.training:
            top = torch.topk(s, math.isqrt(t), dim=1)
            gate = torch.zeros_like(s).scatter(1, top.indices, top.values)
        return gate * self.out_proj(found), s


def budget(s, n):
    return 1e-3 * F.relu(s.mean() - n / s.shape[1])


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=32, width=16):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.first, self.second, self.lookup = BaseConv(width), BaseConv(width), SelectiveLookup(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, ids):
        x = self.norms[0](self.first(self.embed(ids)))
        found, s = self.lookup(x)
        x = self.second(self.norms[1](x + found))
        return self.head(self.norms[2](x)), s


def module():
    return LanguageModel()


def inputs(batch, length):
    return (torch.randint(32, (batch, length)),)
