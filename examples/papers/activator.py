"""Activator: a GLU with normalised branches in place of attention and feed-forward of a vision transformer.

Abdullah and Aydin, "Activator: GLU Activation Function as the Core Component of a Vision Transformer", 2024,
arXiv:2405.15953.

    y = W3 (LN(gelu(W1 x)) * LN(W2 x)) + x

x, y: batch, patches, width;  W1, W2: width x hidden;  W3: hidden x width. Both branches share the one LN.
"""

import torch
from torch import nn

GATES = [("glu", 2)]


class GatingUnit(nn.Module):
    def __init__(self, dim, hidden_dim, dropout=0.1):
        super().__init__()
        self.proj_1 = nn.Linear(dim, hidden_dim)
        self.proj_2 = nn.Linear(dim, hidden_dim)
        self.proj_3 = nn.Linear(hidden_dim, dim)
        self.gelu, self.norm, self.drop = nn.GELU(), nn.LayerNorm(hidden_dim), nn.Dropout(dropout)

    def forward(self, x):
        u = self.norm(self.gelu(self.proj_1(x)))
        v = self.norm(self.proj_2(x))
        return self.drop(self.proj_3(u * v))


class Block(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.norm, self.unit = nn.LayerNorm(dim), GatingUnit(dim, hidden_dim)

    def forward(self, x):
        return self.unit(self.norm(x)) + x


class Classifier(nn.Module):
    def __init__(self, dim, hidden_dim, depth=2, patch=4, classes=10):
        super().__init__()
        self.patcher = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.blocks = nn.Sequential(*[Block(dim, hidden_dim) for _ in range(depth)])
        self.classifier = nn.Linear(dim, classes)

    def forward(self, image):
        patches = self.patcher(image)
        tokens = patches.permute(0, 2, 3, 1).reshape(patches.shape[0], -1, patches.shape[1])
        return self.classifier(self.blocks(tokens).mean(dim=1))


def module():
    return Classifier(dim=24, hidden_dim=48)


def inputs(batch, length):  # images, 4 * length wide
    return (torch.randn(batch, 3, 8, 4 * length),)
