"""Event-based features with adaptive selection thresholds: the best feature fires if it is close enough.

Afshar, Ralph, Xu, Tapson, van Schaik and Cohen, "Event-Based Feature Extraction Using Adaptive Selection Thresholds",
Sensors 2020, arXiv:1907.07853.

    s_f = <feature_f, x>,   f* = argmax over the f with s_f >= theta_f
    out_f = 1[f = f*],      and zero for all f where no feature passes
    match:  feature_f* <- normalise((1 - eta) feature_f* + eta x),   theta_f* <- theta_f* + rise
    miss:   theta_f <- theta_f - fall   for all f

x: batch, events, size, the normalised surface of recent events around each event. Features and thresholds learn by
`adapt`, not by gradient. The catalogue's reading of the rule: a hard selection, and a linear classifier on its counts.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("hard", 1)]


class Selection(nn.Module):
    def __init__(self, size, features, eta=0.01, rise=0.001, fall=0.002):
        super().__init__()
        self.eta, self.rise, self.fall = eta, rise, fall
        self.features = nn.Parameter(F.normalize(torch.rand(features, size), dim=-1), requires_grad=False)
        self.thresholds = nn.Parameter(torch.full((features,), 0.8), requires_grad=False)

    def forward(self, x):
        s = F.linear(x, self.features)
        passing = s >= self.thresholds
        winner = s.masked_fill(~passing, -1.0).argmax(dim=-1)
        return F.one_hot(winner, s.shape[-1]).to(x.dtype) * passing

    @torch.no_grad()
    def adapt(self, x):
        """One step for a stream of events, (events, size), in their order."""
        for event in x:
            fired = self(event)
            moved = F.normalize((1 - self.eta) * self.features + self.eta * event, dim=-1)
            self.features.copy_(torch.where(fired[:, None] > 0, moved, self.features))
            self.thresholds.add_(torch.where(fired.sum() > 0, self.rise * fired, -self.fall))


class Classifier(nn.Module):
    def __init__(self, size, features, classes):
        super().__init__()
        self.select, self.head = Selection(size, features), nn.Linear(features, classes)

    def forward(self, surfaces):
        return self.head(self.select(F.normalize(surfaces, dim=-1)).sum(dim=1))


def module():
    return Classifier(size=25, features=12, classes=4)


def inputs(batch, length):
    return (torch.rand(batch, length, 25),)
