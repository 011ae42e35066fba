"""Sparsely-gated mixture of residual blocks: a router sees the pooled image and picks k experts per image.

Pavlitska et al., "Sparsely-gated Mixture-of-Expert Layers for CNN Interpretability", 2022, arXiv:2204.10598.

    logits = FC(GAP(x))
    w = softmax(topk(logits, k))
    y = sum over the k chosen i of w_i * Expert_i(x)

x, y: batch, channels, height, width;  logits, w: batch x experts, zero where not chosen;  Expert_i: a ResBlock.
The gate may also be a convolution in front of the pooling. While training, the hard relative constraint closes an
expert that had too much: with I_i the running importance and its mean over the experts I,
logits_i = -inf where (I_i - I) / I > threshold.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 1)]
SKIPS = 4
VARIANTS = [{"gate": "conv"}]


class ResBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(out)))


class MoEBlock(nn.Module):
    def __init__(self, width, experts, k, gate, threshold=0.5):
        super().__init__()
        self.experts = nn.ModuleList(ResBlock(width) for _ in range(experts))
        before = nn.Conv2d(width, width, 3, padding=1) if gate == "conv" else nn.Identity()
        self.gate = nn.Sequential(before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, experts))
        self.k, self.threshold = min(k, experts), threshold
        self.register_buffer("importance", torch.zeros(experts))

    def forward(self, x):
        logits = self.gate(x)
        if self.training:
            mean = self.importance.mean().clamp_min(1e-6)
            logits = logits.masked_fill((self.importance - mean) / mean > self.threshold, -torch.inf)
        top, chosen = torch.topk(logits, self.k, dim=1)
        weights = torch.zeros_like(logits).scatter(1, chosen, F.softmax(top, dim=1))
        if self.training:
            self.importance += weights.detach().sum(0)
        return sum(weights[:, i, None, None, None] * expert(x) for i, expert in enumerate(self.experts))


def importance_loss(weights):
    """The soft constraint: squared coefficient of variation of what each expert got in a batch."""
    importance = weights.sum(0)
    return importance.var(unbiased=False) / importance.mean().square()


class Classifier(nn.Module):
    def __init__(self, width, experts, k, gate):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block, self.moe = ResBlock(width), MoEBlock(width, experts, k, gate)
        self.head = nn.Linear(width, 10)

    def forward(self, image):
        x = self.moe(self.block(self.stem(image)))
        return self.head(x.mean((2, 3)))


def module(experts=4, k=2, gate="fc"):
    return Classifier(8, experts, k, gate)


def inputs(batch, length):  # length: a quarter of the image's side
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
