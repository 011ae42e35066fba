"""Parallel gated network: what a GRU carries step by step is read from the whole previous window at once.

Jia et al., "PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting", 2024, NeurIPS,
arXiv:2409.17703.

    hid    = Conv1d over the window of steps before t, zero-padded, without t      (HIE)
    [s, u] = split(Conv1x1([x; marks; hid]))
    h      = hid * sigmoid(s) + (1 - sigmoid(s)) * tanh(u)

x: batch, time, variates;  hid, s, u, h: batch, variates, d, time. Convolutions are grouped by variate.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("highway", 1)]


class PGN(nn.Module):
    def __init__(self, variates, marks, d, window):
        super().__init__()
        self.variates, self.d, self.window = variates, d, window
        self.hidden_MLP = nn.Conv1d(variates * (1 + marks), variates * d, window, groups=variates)
        self.gate = nn.Conv1d(variates * (1 + marks + d), variates * 2 * d, 1, groups=variates)

    def forward(self, x):  # batch, variates, 1 + marks, time
        b, c, _, t = x.shape
        past = F.pad(x.flatten(1, 2), (self.window, 0))[:, :, :-1]
        hid = self.hidden_MLP(past).reshape(b, c, self.d, t)
        both = torch.cat([x, hid], dim=2).reshape(b, -1, t)
        sigmoid_gate, tanh_gate = torch.split(self.gate(both).reshape(b, c, -1, t), self.d, dim=2)
        sigmoid_gate = torch.sigmoid(sigmoid_gate)
        return hid * sigmoid_gate + (1 - sigmoid_gate) * torch.tanh(tanh_gate)


class Forecaster(nn.Module):
    """Normalised by each series' own mean and deviation, and back after the forecast."""

    def __init__(self, variates=3, marks=2, d=8, window=8, horizon=5):
        super().__init__()
        self.pgn = PGN(variates, marks, d, window)
        self.head = nn.Linear(d, horizon)

    def forward(self, x, marks):  # batch, time, variates; batch, time, calendar features
        means = x.mean(1, keepdim=True).detach()
        stdev = torch.sqrt(torch.var(x - means, dim=1, keepdim=True, unbiased=False) + 1e-5)
        x = ((x - means) / stdev).permute(0, 2, 1).unsqueeze(2)
        marks = marks.permute(0, 2, 1).unsqueeze(1).repeat(1, x.shape[1], 1, 1)
        h = self.pgn(torch.cat([x, marks], dim=2))
        return self.head(h[..., -1]).permute(0, 2, 1) * stdev + means  # batch, horizon, variates


def module():
    return Forecaster()


def inputs(batch, length):
    return torch.randn(batch, length, 3), torch.rand(batch, length, 2)
