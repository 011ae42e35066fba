"""AW-MoE: the gate over the experts is pooled from a user's behaviours by attention to the target item.

Gong et al., "Attention Weighted Mixture of Experts with Contrastive Learning for Personalized Ranking in
E-commerce", 2023, arXiv:2306.05011.

    g = sum_j a(b_j, t) * GateUnit(b_j)
    y = sum_e g_e * Expert_e(x)

b: batch, behaviours, width;  t: batch, width;  a: a number per behaviour, by the activation unit;  g: batch x experts.
The normalisation of g is open in the paper: none is put, or a softmax (an option). `contrast` holds the gate of a
masked behaviour sequence close to the gate of the whole one.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 1)]
VARIANTS = [{"normalise": True}]


def mlp(*widths):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GateNetwork(nn.Module):
    def __init__(self, width, experts):
        super().__init__()
        self.activation_unit, self.gate_unit = mlp(3 * width, width, 1), mlp(width, width, experts)

    def forward(self, behaviours, target, mask):
        t = target.unsqueeze(1).expand_as(behaviours)
        a = self.activation_unit(torch.cat([behaviours, t, behaviours - t], dim=-1))
        a = a.masked_fill(~mask.unsqueeze(-1), 0.0)
        return torch.matmul(a.transpose(1, 2), self.gate_unit(behaviours)).squeeze(1)


class AWMoE(nn.Module):
    def __init__(self, items, width, experts, normalise):
        super().__init__()
        self.embedding = nn.Embedding(items, width, padding_idx=0)
        self.profile = nn.Linear(5, width)
        self.gate = GateNetwork(width, experts)
        self.experts = nn.ModuleList(mlp(3 * width, 2 * width, 1) for _ in range(experts))
        self.normalise = normalise

    def forward(self, user, history, item):
        mask = history != 0
        behaviours, target = self.embedding(history), self.embedding(item)
        x = torch.cat([self.profile(user), behaviours.sum(1), target], dim=-1)
        g = self.gate(behaviours, target, mask)
        if self.normalise:
            g = torch.softmax(g, dim=-1)
        scores = torch.cat([expert(x) for expert in self.experts], dim=-1)
        return (g * scores).sum(-1), g


def contrast(whole, masked, temperature=0.1):
    """InfoNCE: each user's gates belong together, other users of the batch are the negatives."""
    sims = F.normalize(whole, dim=-1) @ F.normalize(masked, dim=-1).T / temperature
    return F.cross_entropy(sims, torch.arange(len(sims), device=sims.device))


def module(experts=4, normalise=False):
    return AWMoE(30, 8, experts, normalise)


def inputs(batch, length):  # length: behaviours of a user; item 0 pads
    return torch.randn(batch, 5), torch.randint(30, (batch, length)), torch.randint(1, 30, (batch,))
