"""TIES: task vectors trimmed, their signs elected, and those that agree averaged.

Yadav, Tam, Choshen, Raffel and Bansal, "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
arXiv:2306.01708.

    trim:   tau_m <- tau_m * 1[|tau_m| among the k largest of its model]
    elect:  gamma = sign(sum over m of tau_m)
    merge:  theta = theta0 + lambda * mean of the tau_m with sign(tau_m) = gamma

tau: models, parameters;  k: a share of them, 20% in the paper;  one vector holds all the weights of a model.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("hard", 2)]  # trimmed, and elected


def ties(tau, density):
    count = max(int(density * tau.shape[1]), 1)
    kth = tau.abs().kthvalue(tau.shape[1] - count + 1, dim=1, keepdim=True).values
    tau = tau * (tau.abs() >= kth)
    gamma = torch.sign(tau.sum(dim=0))
    agrees = torch.where(gamma > 0, tau > 0, tau < 0)
    chosen = tau * agrees
    return chosen.sum(dim=0) / (chosen != 0).sum(dim=0).clamp(min=1)


class Merged(nn.Module):
    """A network of two layers out of several fine-tuned ones."""

    def __init__(self, models, width, hidden, out, density, scale):
        super().__init__()
        self.shapes = [(hidden, width), (hidden,), (out, hidden), (out,)]
        self.density, self.scale = density, scale
        size = sum(torch.Size(s).numel() for s in self.shapes)
        self.register_buffer("pretrained", torch.randn(size) * 0.2)
        self.tau = nn.Parameter(torch.randn(models, size) * 0.05)

    def forward(self, x):
        theta = self.pretrained + self.scale * ties(self.tau, self.density)
        parts = theta.split([torch.Size(s).numel() for s in self.shapes])
        w1, b1, w2, b2 = (part.view(s) for part, s in zip(parts, self.shapes, strict=True))
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def module(models=3, density=0.2, scale=1.0):
    return Merged(models, 16, 32, 5, density, scale)


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
