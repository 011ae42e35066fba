"""MASA: the attention projections of all layers are mixtures of a few matrices.

Zhussip, Shopkhoev, Ali and Lefkimmiatis, "Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary
Learning", 2025, arXiv:2508.04581.

    W_l = sum_s c_{l,s} D_s            for each of Q, K, V and O

D: atoms, width, width, shared by all layers;  c: layers, atoms. Both are learned, and c is free: neither positive nor
normalised. Exact for given weights as soon as there are as many atoms as layers.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("mixture", 8)]  # four projections of two layers


class Dictionary(nn.Module):
    def __init__(self, layers, atoms, width):
        super().__init__()
        self.atoms = nn.Parameter(torch.randn(atoms, width, width) * (atoms * width) ** -0.5)
        self.coefficients = nn.Parameter(torch.randn(layers, atoms))

    def weight(self, layer):
        return torch.einsum("s,sij->ij", self.coefficients[layer], self.atoms)


class Transformer(nn.Module):
    def __init__(self, width, heads, layers, atoms):
        super().__init__()
        self.heads, self.layers = heads, layers
        self.q, self.k, self.v, self.o = (Dictionary(layers, atoms, width) for _ in range(4))
        self.norms1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.norms2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )

    def attention(self, x, layer):
        b, n, d = x.shape
        shape = (b, n, self.heads, d // self.heads)
        q, k, v = (F.linear(x, p.weight(layer)).view(shape).transpose(1, 2) for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(h.transpose(1, 2).reshape(b, n, d), self.o.weight(layer))

    def forward(self, x):
        for layer in range(self.layers):
            x = x + self.attention(self.norms1[layer](x), layer)
            x = x + self.mlps[layer](self.norms2[layer](x))
        return x


def module(atoms=3):
    return Transformer(24, 4, layers=2, atoms=atoms)


def inputs(batch, length):
    return (torch.randn(batch, length, 24),)
