"""LiNeS: what fine-tuning changed is scaled by depth, shallow layers less than deep ones.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret and Frossard, "LiNeS: Post-training Layer Scaling Prevents Forgetting
and Enhances Model Merging", ICLR 2025, arXiv:2410.17146.

    theta_l = theta0_l + (alpha + beta * (l - 1) / (L - 1)) * tau_l,        tau_l = theta_ft_l - theta0_l

l = 1 ... L: the layers;  alpha, beta: two numbers chosen on held-out data. Constants, so that the scale is folded into
the weights.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []


class EditedLinear(nn.Module):
    """A frozen layer and its task vector."""

    def __init__(self, width):
        super().__init__()
        self.scale = 1.0
        self.register_buffer("pretrained", torch.randn(width, width) * width**-0.5)
        self.tau = nn.Parameter(torch.randn(width, width) * 0.1 * width**-0.5)

    def forward(self, x):
        return F.linear(x, self.pretrained + self.scale * self.tau)


def lines(layers, alpha, beta):
    for depth, layer in enumerate(layers):
        layer.scale = alpha + beta * depth / max(len(layers) - 1, 1)


class Network(nn.Module):
    def __init__(self, width, depth, alpha, beta):
        super().__init__()
        self.layers = nn.ModuleList(EditedLinear(width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)
        lines(self.layers, alpha, beta)

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x)))
        return self.head(x)


def module(alpha=0.3, beta=0.7):
    return Network(24, 4, alpha, beta)


def inputs(batch, length):
    return (torch.randn(batch, length, 24),)
