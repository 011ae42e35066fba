"""Gateformer's representation gate: a convex blend of two views of each variate.

Lan and Oermann, "Gateformer: Advancing Multivariate Time Series Forecasting through Temporal and Variate-Wise Attention
with Gated Representations", 2025, arXiv:2505.00307.

    g = sigmoid(W1 a + b1 + W2 b + b2)
    out = g * a + (1 - g) * b

a, b, g, out: batch, variates, width. Used twice: on the temporal and the global embedding of a variate, and on a
variate before and after attention among variates.
"""

import torch
from torch import nn

GATES = [("highway", 2)]


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, a, b):
        g = torch.sigmoid(self.w1(a) + self.w2(b))
        return g * a + (1 - g) * b


class Forecaster(nn.Module):
    """Patches along time, then attention among variates; each step blended with what it started from."""

    def __init__(self, history, horizon, width, patch=8):
        super().__init__()
        self.patch = patch
        self.whole = nn.Linear(history, width)
        self.part = nn.Linear(patch, width)
        self.over_time = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.over_variates = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.embedding_gate, self.variate_gate = Gate(width), Gate(width)
        self.head = nn.Linear(width, horizon)

    def forward(self, series):  # batch, variates, history
        batch, variates, history = series.shape
        patches = self.part(series.reshape(batch * variates, history // self.patch, self.patch))
        temporal = self.over_time(patches).mean(1).reshape(batch, variates, -1)
        x = self.embedding_gate(temporal, self.whole(series))
        x = self.variate_gate(self.over_variates(x), x)
        return self.head(x)  # batch, variates, horizon


def module():
    return Forecaster(history=32, horizon=12, width=16)


def inputs(batch, length):  # length: how many variates
    return (torch.randn(batch, length, 32),)
