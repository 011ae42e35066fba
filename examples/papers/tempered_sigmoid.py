"""Tempered sigmoids: bounded activations for training with differential privacy.

Papernot, Thakurta, Song, Chien and Erlingsson, "Tempered Sigmoid Activations for Deep Learning with Differential
Privacy", 2020, arXiv:2007.14191.

    phi(x) = s * sigmoid(T * x) - o

s: scale, T: inverse temperature, o: offset; tanh is (2, 2, 1). An activation in the place of ReLU: it bounds what a
layer hands on, and so the gradients' norms that are clipped. It multiplies nothing.
"""

import torch
from torch import nn

GATES = []
VARIANTS = [{"scale": 1.58, "temperature": 3.0, "offset": 0.71}]


class TemperedSigmoid(nn.Module):
    def __init__(self, scale=2.0, temperature=2.0, offset=1.0):
        super().__init__()
        self.scale, self.temperature, self.offset = scale, temperature, offset

    def forward(self, x):
        return self.scale * torch.sigmoid(self.temperature * x) - self.offset


def module(**options):
    """The small network for MNIST that papers on private training share, narrower."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 8, stride=2, padding=3),
        TemperedSigmoid(**options),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(8, 16, 4, stride=2),
        TemperedSigmoid(**options),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 16),
        TemperedSigmoid(**options),
        nn.Linear(16, 10),
    )


def inputs(batch, length):  # images of one size; only the batch varies
    return (torch.randn(batch, 1, 28, 28),)
