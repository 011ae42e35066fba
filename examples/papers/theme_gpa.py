"""Gated parallel attention: beside self-attention a decoder attends to a theme, where a given label says so.

Shih et al., "Theme Transformer: Symbolic Music Generation with Theme-Conditioned Transformer", 2021, arXiv:2111.04093.

    y = x + (SA(x) + m * CA(x, theme)) / 2
    y = x + (SA(x) * (1 - m) + m * CA(x, theme)) / 2      mutually exclusive

x, y: batch, tokens, width;  theme: batch, notes, width;  m: batch, tokens, given: true in a passage of the theme.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("hard", 2)]
SKIPS = 2
VARIANTS = [{"exclusive": True}]


class ParallelDecoderLayer(nn.Module):
    def __init__(self, d_model, nhead, exclusive):
        super().__init__()
        self.self_attn, self.cross_attn = (nn.MultiheadAttention(d_model, nhead, batch_first=True) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(d_model, 2 * d_model), nn.Linear(2 * d_model, d_model)
        self.norm1, self.norm2, self.exclusive = nn.LayerNorm(d_model), nn.LayerNorm(d_model), exclusive

    def forward(self, x, theme, label, causal):
        m = label.unsqueeze(-1).to(x.dtype)
        own, _ = self.self_attn(x, x, x, attn_mask=causal, need_weights=False)
        other, _ = self.cross_attn(x, theme, theme, need_weights=False)
        if self.exclusive:
            own = own * (1 - m)
        x = self.norm1(x + (own + m * other) / 2)
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class ThemeTransformer(nn.Module):
    def __init__(self, vocabulary, d_model, exclusive):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.encoder = nn.TransformerEncoderLayer(d_model, 4, 2 * d_model, 0.0, batch_first=True)
        self.layers = nn.ModuleList(ParallelDecoderLayer(d_model, 4, exclusive) for _ in range(2))
        self.out = nn.Linear(d_model, vocabulary)

    def forward(self, ids, theme, label):
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x, memory = self.embedding(ids), self.encoder(self.embedding(theme))
        for layer in self.layers:
            x = layer(x, memory, label, causal)
        return self.out(x)


def module(exclusive=False):
    return ThemeTransformer(40, 16, exclusive)


def inputs(batch, length):
    ids, label = torch.randint(40, (batch, length)), torch.arange(length).expand(batch, -1) % 4 < 2
    return ids, torch.randint(40, (batch, 5)), label
