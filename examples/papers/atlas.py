"""aTLAS: task vectors with a learned coefficient for each of them and each parameter block.

Zhang, Albert, Rodriguez-Opazo, van den Hengel, Abbasnejad, "Knowledge Composition using Task Vectors with Learned
Anisotropic Scaling", NeurIPS 2024, arXiv:2407.02880.

    theta_b = theta0_b + sum_i c_{i,b} tau_{i,b}

theta0: the pretrained weights, frozen;  tau_i = theta_i - theta0: task vectors, frozen;  b: a weight or a bias;
c: tasks x blocks, zero at the start, and all that is trained. With `partitions` = p each block falls at random into
p groups of entries, each with a coefficient of its own: c: p x tasks x blocks.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("mixture", 8)]
VARIANTS = [{"partitions": 4}]


class Composed(nn.Module):
    """A parameter block made of the pretrained one and the task vectors."""

    def __init__(self, pretrained, experts, partitions):
        super().__init__()
        self.register_buffer("theta0", pretrained)
        self.register_buffer("tau", 0.2 * torch.randn(experts, *pretrained.shape))
        self.coefficients = nn.Parameter(torch.zeros(experts, partitions))
        groups = torch.randint(partitions, pretrained.shape)
        self.register_buffer("groups", F.one_hot(groups, partitions).float() if partitions > 1 else None)

    def forward(self):
        scales = self.coefficients if self.groups is None else [self.groups @ c for c in self.coefficients]
        return self.theta0 + sum(c * tau for c, tau in zip(scales, self.tau, strict=True))


class Linear(nn.Module):
    def __init__(self, width_in, width_out, experts, partitions):
        super().__init__()
        self.weight = Composed(torch.randn(width_out, width_in) / width_in**0.5, experts, partitions)
        self.bias = Composed(torch.zeros(width_out), experts, partitions)

    def forward(self, x):
        return F.linear(x, self.weight(), self.bias())


class Encoder(nn.Module):
    """A transformer layer of a vision tower, class token first, its four linear layers composed; a zero-shot head."""

    def __init__(self, width, classes, experts, partitions, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = Linear(width, 3 * width, experts, partitions), Linear(width, width, experts, partitions)
        self.fc1 = Linear(width, 2 * width, experts, partitions)
        self.fc2 = Linear(2 * width, width, experts, partitions)
        self.classes = nn.Parameter(torch.randn(classes, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return F.normalize(x[:, 0], dim=-1) @ F.normalize(self.classes, dim=-1).T


def module(experts=3, partitions=1):
    return Encoder(width=16, classes=5, experts=experts, partitions=partitions)


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
