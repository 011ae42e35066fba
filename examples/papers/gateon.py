"""GateON: units gated by context, and plasticity that relevance obstructs.

Barry, Gerstner, Bellec, "Context selectivity with dynamic availability enables lifelong continual learning", 2023,
arXiv:2306.01690.

    a_l = phi(W_l a_{l-1} + b_l) * g_{c,l}
    dW_ij = (1 - R_ij) * dW_ij

a_l: batch, units;  g: contexts x units, in [0, 1], learned for each context, all ones at first;  R: the relevance of
a parameter. Underspecified: R is taken as a running mean of |gradient * weight|, clipped to [0, 1], and relevance fades
when nearly every weight is claimed.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("feature", 2)]


class GatedLayer(nn.Module):
    def __init__(self, features, units, contexts):
        super().__init__()
        self.linear = nn.Linear(features, units)
        self.gates = nn.Parameter(torch.ones(contexts, units))
        self.register_buffer("relevance", torch.zeros(units, features))

    def forward(self, x, context):
        g = F.embedding(context, self.gates).clamp(0, 1)
        return torch.relu(self.linear(x)) * g

    @torch.no_grad()
    def obstruct(self, rate=0.01):
        """Between backward and the optimiser's step."""
        grad = self.linear.weight.grad
        self.relevance.lerp_((grad * self.linear.weight).abs(), rate).clamp_(0, 1)
        if self.relevance.mean() > 0.95:
            self.relevance.mul_(0.99)
        grad.mul_(1 - self.relevance)


class Network(nn.Module):
    def __init__(self, features, units, classes, contexts):
        super().__init__()
        self.layer1 = GatedLayer(features, units, contexts)
        self.layer2 = GatedLayer(units, units, contexts)
        self.readout = nn.Linear(units, classes)

    def forward(self, x, context):
        return self.readout(self.layer2(self.layer1(x, context), context))


def module():
    return Network(features=20, units=24, classes=4, contexts=5)


def inputs(batch, length):  # images are flat: nothing but the batch varies
    return torch.randn(batch, 20), torch.randint(5, (batch,))
