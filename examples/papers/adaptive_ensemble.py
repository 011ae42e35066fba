"""Adaptive ensemble: the features of several networks, each weighed by what all of them look like.

Mungoli, "Adaptive Ensemble Learning: Boosting Model Performance through Intelligent Feature Fusion in Deep Neural
Networks", 2023, arXiv:2304.02653.

    z_m = mean over features of f_m,   w = sigmoid(W2 relu(W1 z)),   y = head([w_1 f_1; ...; w_M f_M])

f_m: batch, width, the features of network m;  z, w: batch, M. The paper gives no equation; the least reading is a
squeeze and excitation over the networks.
"""

import torch
from torch import nn

GATES = [("channel", 1)]


class Fusion(nn.Module):
    def __init__(self, members):
        super().__init__()
        hidden = max(members // 2, 1)
        self.excite = nn.Sequential(nn.Linear(members, hidden), nn.ReLU(), nn.Linear(hidden, members), nn.Sigmoid())

    def forward(self, features):  # batch, members, width
        w = self.excite(features.mean(dim=2))
        return features * w.unsqueeze(2)


class Ensemble(nn.Module):
    def __init__(self, members, width, classes):
        super().__init__()
        self.members = nn.ModuleList(self.network(width, 2 * i + 1) for i in range(members))
        self.fusion, self.head = Fusion(members), nn.Linear(members * width, classes)

    @staticmethod
    def network(width, kernel):
        return nn.Sequential(
            nn.Conv2d(3, 12, kernel, padding=kernel // 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(12, width),
        )  # fmt: skip

    def forward(self, images):
        features = torch.stack([member(images) for member in self.members], dim=1)
        return self.head(self.fusion(features).flatten(1))


def module(experts=3):
    return Ensemble(experts, 16, 5)


def inputs(batch, length):  # length: half the side of an image
    return (torch.randn(batch, 3, 2 * length, 2 * length),)
