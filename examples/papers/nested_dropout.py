"""Nested dropout: training keeps a random prefix of the features, so that they come in order of importance.

Chen, Hu, Shen, Ai and Suykens, "Compressing Features for Learning with Noisy Labels", TNNLS 2022, arXiv:2206.13140;
Rippel, Gelbart and Adams, "Learning Ordered Representations with Nested Dropout", 2014, arXiv:1402.0915.

    h <- h * m(k),   m(k)_i = 1[i <= k],   k ~ p(k) in training, for each sample;  the best k on clean data afterwards

h: batch, features. p is a truncated normal of mean zero in the later paper (sigma), geometric in the earlier one. k is
drawn or fixed, never computed from h: a kind of dropout, and at the end a smaller layer.
"""

import torch
from torch import nn

GATES = []
VARIANTS = [{"keep": 8}]


class NestedDropout(nn.Module):
    def __init__(self, features, sigma=50.0, keep=None):
        super().__init__()
        self.sigma, self.keep = sigma, keep or features
        self.register_buffer("rank", torch.arange(1, features + 1))

    def forward(self, h):
        if self.training:
            k = (torch.randn(h.shape[0], 1, device=h.device).abs() * self.sigma).clamp(1, self.rank.numel())
        else:
            k = self.keep
        return h * (self.rank <= k)


class Classifier(nn.Module):
    def __init__(self, features, classes, keep):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.embed, self.nested = nn.Linear(16, features), NestedDropout(features, keep=keep)
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        return self.head(self.nested(self.embed(self.backbone(x))))


def module(keep=None):
    return Classifier(32, 5, keep)


def inputs(batch, length):  # length: half the side of an image
    return (torch.randn(batch, 3, 2 * length, 2 * length),)
