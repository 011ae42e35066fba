"""Perfusion: a gated rank-one edit of the key and value projections of cross-attention, one concept at a time.

Tewel, Gal, Chechik, Atzmon, "Key-Locked Rank One Editing for Text-to-Image Personalization", SIGGRAPH 2023,
arXiv:2305.01644.

    sim = e^T C^-1 i*           E = i*^T C^-1 i*
    out = W e - (sim / E) W i* + sigmoid((sim / E - beta) / tau) o*

e: batch, words, text width;  W: the frozen key or value projection;  i*: the running mean of the concept's encodings;
C: the second moment of text encodings, kept as its inverse;  o*: of the keys locked to the super-category's key
(frozen), of the values learned. beta, tau: 0.75, 0.1 in training, 0.70, 0.15 afterwards.
"""

import torch
from torch import nn

GATES = [("spatial", 2)]


class RankOneEdit(nn.Module):
    def __init__(self, proj, concept, c_inv, locked_to=None):
        super().__init__()
        self.proj = proj.requires_grad_(False)
        self.register_buffer("i_star", concept)
        self.register_buffer("c_inv", c_inv)
        start = proj(concept if locked_to is None else locked_to).detach()
        self.o_star = nn.Parameter(start, requires_grad=locked_to is None)

    def forward(self, e):
        beta, tau = (0.75, 0.1) if self.training else (0.70, 0.15)
        i_energy = self.i_star @ self.c_inv @ self.i_star
        sim = (e @ self.c_inv @ self.i_star).unsqueeze(-1) / i_energy
        return self.proj(e - sim * self.i_star) + torch.sigmoid((sim - beta) / tau) * self.o_star


class CrossAttention(nn.Module):  # image tokens ask the words of the prompt
    def __init__(self, width, text_width, heads, concept, super_category, c_inv):
        super().__init__()
        self.heads, self.scale, self.norm = heads, (width // heads) ** -0.5, nn.LayerNorm(width)
        self.to_q, self.to_out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.to_k = RankOneEdit(nn.Linear(text_width, width, bias=False), concept, c_inv, locked_to=super_category)
        self.to_v = RankOneEdit(nn.Linear(text_width, width, bias=False), concept, c_inv)

    def forward(self, x, text):
        qkv = self.to_q(self.norm(x)), self.to_k(text), self.to_v(text)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        return x + self.to_out((weights @ v).transpose(1, 2).flatten(2))


def module(width=24, text_width=16):
    concept, super_category = torch.randn(text_width), torch.randn(text_width)
    words = torch.randn(200, text_width)
    c_inv = torch.linalg.inv(words.T @ words / len(words))
    return CrossAttention(width, text_width, 4, concept, super_category, c_inv)


def inputs(batch, length):  # length: of the prompt
    return torch.randn(batch, 9, 24), torch.randn(batch, length, 16)
