"""Controllable multi-task networks: each task runs its own prefix of the shared channels.

Aich, Schulter, Roy-Chowdhury, Chandraker and Suh, "Efficient Controllable Multi-Task Architectures", ICCV 2023,
arXiv:2308.11744.

    h <- h * m(w),   m(w)_i = 1[i <= w C]

h: batch, C, height, width;  w: batch, tasks + 1, the widths in [0, 1] of the encoder and of each task's decoder, which
the user chooses for a budget and a preference of tasks; here 0 leaves a task out. Training samples widths. A width is
an input, never a decision of the network; kept fixed, the prefixes are cut out of the weights.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []
SKIPS = 5  # what a width of 0 switches off: two layers of the encoder, three decoders


def slim(h, width):
    """Zero all but the first channels of each sample."""
    channels = torch.arange(1, h.shape[1] + 1, device=h.device)
    return h * (channels <= width[:, None] * h.shape[1]).to(h.dtype)[:, :, None, None]


class Decoder(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.conv, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, out, 1)

    def forward(self, x, width):
        return self.head(slim(F.relu(self.conv(x)), width))


class MultiTask(nn.Module):
    """Dense prediction: segmentation, depth, normals."""

    def __init__(self, width=24, outs=(5, 1, 3)):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)])
        self.decoders = nn.ModuleList(Decoder(width, out) for out in outs)

    def forward(self, x, widths):
        for conv in self.convs:
            x = slim(F.relu(conv(x)), widths[:, 0])
        return tuple(decoder(x, widths[:, i]) for i, decoder in enumerate(self.decoders, start=1))


def module():
    return MultiTask()


def inputs(batch, length):  # length: half the side of an image
    return torch.randn(batch, 3, 2 * length, 2 * length), torch.rand(batch, 4) * 0.75 + 0.25
