"""Hard-attention gates (feature-selection gates) on the branches of a vision transformer.

Roffo, Biffi, Salvagnini, Cherubini, "Hard-Attention Gates with Gradient Routing for Endoscopic Image Computing",
2024, arXiv:2407.04400.

    x = x + Attn(LN1(x)) * sigmoid(g1)
    x = x + MLP(LN2(x)) * sigmoid(g2)

x: batch, patches, width;  g1, g2: width, born as Xavier noise, so that every gate starts near one half.
Gradient routing: one pass updates the gates alone, a second pass everything else. The released trainer clears the
gradients once before both passes; here each pass starts from zero.
"""

import torch
from torch import nn

GATES = [("residual-scale", 4)]


class FeatureSelectionGate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scores = nn.Parameter(torch.empty(1, width))
        nn.init.xavier_uniform_(self.scores)

    def forward(self, x):
        return x * torch.sigmoid(self.scores)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gate1, self.gate2 = FeatureSelectionGate(width), FeatureSelectionGate(width)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.gate1(self.attn(h, h, h, need_weights=False)[0])
        return x + self.gate2(self.mlp(self.norm2(x)))


def routed_step(model, criterion, batch, target, gate_optimizer, main_optimizer):
    """Two forward passes: the gates learn from the first, the network from the second."""
    for optimizer in (gate_optimizer, main_optimizer):
        model.zero_grad()
        criterion(model(batch), target).backward()
        optimizer.step()


def module():
    return nn.Sequential(Block(24, 4), Block(24, 4), nn.LayerNorm(24))


def inputs(batch, length):  # length: how many patches
    return (torch.randn(batch, length, 24),)
