"""Language-aware style adaptation: the phonemes of a text are scaled and shifted by what their language asks for.

Lou, Paik, Li, Hu and Yao, "Generalized Multilingual Text-to-Speech Generation with Language-Aware Style Adaptation",
2025, arXiv:2504.08274.

    c = MLP([e_language; x]),   gamma, beta = W c
    x <- (1 + gamma) * LN(x) + beta                     for each phoneme

x: batch, phonemes, width;  language: batch. The abstract gives no equation; this is its least reading, a modulation
of each phoneme's features.
"""

import torch
from torch import nn

GATES = [("modulation", 2)]


class StyleAdapter(nn.Module):
    def __init__(self, width, languages):
        super().__init__()
        self.language = nn.Embedding(languages, width)
        self.style = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x, language):
        e = self.language(language).unsqueeze(1).expand_as(x)
        gamma, beta = self.style(torch.cat([e, x], dim=-1)).chunk(2, dim=-1)
        return (1 + gamma) * self.norm(x) + beta


class Encoder(nn.Module):
    """The text side of a FastSpeech-like model, one mel frame for each phoneme."""

    def __init__(self, phonemes, width, languages, layers, mels):
        super().__init__()
        self.embed = nn.Embedding(phonemes, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.adapters = nn.ModuleList(StyleAdapter(width, languages) for _ in range(layers))
        self.mel = nn.Linear(width, mels)

    def forward(self, phonemes, language):
        x = self.embed(phonemes)
        for block, adapter in zip(self.blocks, self.adapters, strict=True):
            x = adapter(block(x), language)
        return self.mel(x)


def module():
    return Encoder(40, 24, languages=3, layers=2, mels=16)


def inputs(batch, length):
    return torch.randint(0, 40, (batch, length)), torch.randint(0, 3, (batch,))
