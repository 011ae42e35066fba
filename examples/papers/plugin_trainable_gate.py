"""Trainable gate: a learned number per channel, stepped at one half, with a gradient of a chosen shape.

Kim et al., "Plug-in, Trainable Gate for Streamlining Arbitrary Neural Networks", 2019, arXiv:1904.10921.

    b(w) = 1 if w >= 0.5 else 0
    TG(w) = b(w) + (L (w - 0.5) - floor(L (w - 0.5))) / L * s(w - 0.5),   L = 1e5
    y = TG(w) * x

x, y: batch, channels, height, width;  w: channels. TG differs from b by 1 / L at most, its derivative is s, the
gradient shaping function. After training y = b(w) * x, and the channels that are off can be taken out.
`cost`: the multiplications that are left, as a function of the gates, for a penalty beside the task's loss.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("hard", 3)]
L = 1e5


def shape(w):
    return 1 - torch.tanh(w) ** 2


class TrainableGate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, channels))

    def value(self):
        w = self.w - 0.5
        step = (w >= 0).float()
        if not self.training:
            return step
        return step + (L * w - torch.floor(L * w)) / L * shape(w)

    def forward(self, x):
        return x * self.value().view(1, -1, 1, 1)


class GatedConv(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.gate = TrainableGate(cout)

    def forward(self, x):
        return F.relu(self.gate(self.norm(self.conv(x))))


class Net(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.layers = nn.Sequential(*(GatedConv(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))

    def cost(self):
        gates = [torch.ones(3), *(layer.gate.value() for layer in self.layers)]
        return sum(9 * a.sum() * b.sum() for a, b in pairwise(gates))


def module():
    return Net([3, 8, 16, 16])


def inputs(batch, length):  # length: a quarter of the image's side
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
