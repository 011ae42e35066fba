"""NiNformer: a linear map of the tokens, gated by what an MLP-Mixer makes of them.

Abdullah and Aydin, "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function", 2024,
arXiv:2403.02411.

    y = x + (W u) * MLPMixer(u),   u = LN(x),   out = y + FFN(LN(y))

x, u, y, out: batch, tokens, width. There is one LN for both. The mixer's own layers have a number of tokens fixed.
"""

import torch
from torch import nn

GATES = [("token-mixing", 2)]


def ffn(dim):
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))


class MixerBlock(nn.Module):
    def __init__(self, dim, tokens):
        super().__init__()
        self.norm, self.token_mix, self.channel_mix = nn.LayerNorm(dim), ffn(tokens), ffn(dim)

    def forward(self, x):
        x = x + self.token_mix(self.norm(x).permute(0, 2, 1)).permute(0, 2, 1)
        return x + self.channel_mix(self.norm(x))


class NiNformerBlock(nn.Module):
    def __init__(self, dim, tokens):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.mixer, self.ffn = MixerBlock(dim, tokens), ffn(dim)

    def forward(self, x):
        u = self.norm(x)
        y = x + self.proj(u) * self.mixer(u)
        return y + self.ffn(self.norm(y))


class Classifier(nn.Module):
    def __init__(self, dim, tokens, patch=4, classes=10):
        super().__init__()
        self.patch, self.embed = nn.Unfold(kernel_size=patch, stride=patch), nn.Linear(3 * patch * patch, dim)
        self.blocks = nn.Sequential(NiNformerBlock(dim, tokens), NiNformerBlock(dim, tokens))
        self.head = nn.Linear(dim, classes)

    def forward(self, image):
        return self.head(self.blocks(self.embed(self.patch(image).transpose(1, 2))).mean(dim=1))


def module():
    return Classifier(24, tokens=16)


def inputs(batch, length):  # the number of patches is fixed
    return (torch.randn(batch, 3, 16, 16),)
