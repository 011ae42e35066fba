"""EDU4FD's gated recursive unit: sequential and graph vectors of a text's discourse units, fused as by a GRU.

Wang, Wang, Yang and Zhang, "Detecting Fake News by Enhanced Text Representation with Multi-EDU-Structure Awareness",
2022, arXiv:2205.15139.

    z = sigmoid(W_z [s; h]),  r = sigmoid(W_r [s; h])
    n = tanh(W [s; r * h])
    e = (1 - z) * h + z * n
    text = sum_m softmax_m(a(e_m)) e_m

s, h, e: batch, units, width: s from the sequence of units, h from their graph. The wiring is a reading of the abstract.
"""

import torch
from torch import nn

GATES = [("cell", 1)]


class GatedRecursiveUnit(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.update, self.reset, self.candidate = (nn.Linear(2 * width, width) for _ in range(3))

    def forward(self, s, h):
        both = torch.cat([s, h], dim=-1)
        z, r = torch.sigmoid(self.update(both)), torch.sigmoid(self.reset(both))
        n = torch.tanh(self.candidate(torch.cat([s, r * h], dim=-1)))
        return (1 - z) * h + z * n


class Detector(nn.Module):
    """Real or fake, from the units of a text and the discourse relations between them."""

    def __init__(self, units=32, width=20, relations=3):
        super().__init__()
        self.embed = nn.Linear(units, width)
        self.sequence = nn.Conv1d(width, width, 3, padding=1)
        self.relations = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(relations))
        self.own = nn.Linear(width, width)
        self.fuse = GatedRecursiveUnit(width)
        self.attend, self.classify = nn.Linear(width, 1), nn.Linear(width, 2)

    def graph(self, x, edges):
        mean = edges / edges.sum(-1, keepdim=True).clamp(min=1)
        return torch.relu(self.own(x) + sum(mean[:, i] @ w(x) for i, w in enumerate(self.relations)))

    def forward(self, units, edges):
        x = self.embed(units)
        e = self.fuse(torch.relu(self.sequence(x.mT)).mT, self.graph(x, edges))
        return self.classify((torch.softmax(self.attend(e), dim=1) * e).sum(1))


def module():
    return Detector()


def inputs(batch, length):
    return torch.randn(batch, length, 32), (torch.rand(batch, 3, length, length) > 0.6).float()
