"""APEM: squeeze and excitation over feature fields, and a pattern selector for each task.

Tao et al., "Adaptive Pattern Extraction Multi-Task Learning for Multi-Step Conversion Estimations", 2023,
arXiv:2301.02494.

    s = sigmoid(W2 relu(W1 mean_d(E)))        E' = E * s[..., None]
    h_t = h * sigmoid(W_t v_t)

E: batch, fields, d;  s: batch, fields;  h: batch, features;  v_t: the learned indicator of task t.
Underspecified: excitation is read over fields, the selector as a mask that depends on the task alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("channel", 1), ("feature", 2)]


class GroupTransformer(nn.Module):
    def __init__(self, fields, width, points=2):
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, points, width))
        self.gather, self.spread = (nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.squeeze, self.excite = nn.Linear(fields, fields // 2), nn.Linear(fields // 2, fields)

    def forward(self, e):
        points, _ = self.gather(self.points.expand(e.shape[0], -1, -1), e, e, need_weights=False)
        e = e + self.spread(e, points, points, need_weights=False)[0]  # set attention through a few learned points
        s = torch.sigmoid(self.excite(F.relu(self.squeeze(e.mean(dim=-1)))))
        return torch.einsum("bf,bfd->bfd", s, e)


class PatternSelector(nn.Module):
    def __init__(self, features, indicator):
        super().__init__()
        self.indicator, self.proj = nn.Parameter(torch.randn(indicator)), nn.Linear(indicator, features)

    def forward(self, h):
        return h * torch.sigmoid(self.proj(self.indicator))


class APEM(nn.Module):
    def __init__(self, vocabulary, fields, width, tasks):
        super().__init__()
        self.embedding, self.bottom = nn.Embedding(vocabulary, width), nn.Linear(fields * width, 24)
        self.extract = GroupTransformer(fields, width)
        self.selectors = nn.ModuleList(PatternSelector(24, 4) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(24, 1) for _ in range(tasks))

    def forward(self, ids):
        h = self.bottom(self.extract(self.embedding(ids)).flatten(1)).relu()
        return [torch.sigmoid(tower(select(h))) for select, tower in zip(self.selectors, self.towers, strict=True)]


def module():
    return APEM(vocabulary=50, fields=6, width=8, tasks=2)


def inputs(batch, length):  # the fields are fixed: nothing but the batch varies
    return (torch.randint(50, (batch, 6)),)
