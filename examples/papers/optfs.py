"""OptFS: a learnable gate for every value of every categorical feature.

Lyu, Tang, Liu, Chen, He, Liu, "Optimizing Feature Set for Click-Through Rate Prediction", 2023, arXiv:2301.10909.

    g = sigmoid(tau * m[x]) / sigmoid(m0)
    e = E[x] * g
    loss = BCE + lambda * sum of sigmoid(tau * m)

x: batch, fields, ids of feature values;  m: vocabulary x 1, all m0 at first, so that g is exactly 1;  tau grows from 1
to its final value as final^(t / T). Retraining keeps the values with m > 0 and starts from the first embeddings again.
"""

import torch
from torch import nn

GATES = [("feature", 1)]


class MaskEmbedding(nn.Module):
    def __init__(self, vocabulary, width, m0=0.1, final_tau=200.0):
        super().__init__()
        self.embedding, self.mask_weight = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, 1)
        nn.init.constant_(self.mask_weight.weight, m0)
        self.scale, self.tau, self.final_tau = torch.tensor(m0).sigmoid().item(), 1.0, final_tau

    def anneal(self, t, T):
        self.tau = self.final_tau ** (t / T)

    def forward(self, x):
        g = torch.sigmoid(self.tau * self.mask_weight(x)) / self.scale
        return self.embedding(x) * g

    def penalty(self, weight=1e-6):
        return weight * torch.sigmoid(self.tau * self.mask_weight.weight).sum()

    def ticket(self):
        """The values that retraining keeps, as 0 and 1."""
        return (self.mask_weight.weight > 0).float()


class FactorizationMachine(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.embedding, self.linear = MaskEmbedding(vocabulary, width), nn.Embedding(vocabulary, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        e = self.embedding(x)
        pairs = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(-1, keepdim=True)
        return torch.sigmoid(self.linear(x).sum(1) + pairs + self.bias)


def module():
    return FactorizationMachine(vocabulary=60, width=8)


def inputs(batch, length):  # length: fields
    return (torch.randint(60, (batch, length)),)
