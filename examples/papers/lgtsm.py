"""Learnable gated temporal shift: frames exchange channels through learned 3-tap kernels, then a gated convolution.

Chang, Liu, Lee, Hsu, "Learnable Gated Temporal Shift Module for Deep Video Inpainting", BMVC 2019, arXiv:1907.01131.

    h = [tconv(x_a; k_0), tconv(x_b; k_1), x_rest]
    y = LeakyReLU(Conv_f(h)) * sigmoid(Conv_g(h))

x: batch, frames, C, height, width;  x_a, x_b: a quarter of the channels each, under one kernel k over time, at
first a shift by one frame;  Conv_f, Conv_g: C -> C', 3 x 3, per frame, in the released code with a spectral norm.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("glu", 3)]


def shift(x, kernel):
    b, t, c, h, w = x.shape
    alone = x.transpose(1, 2).reshape(b * c, 1, t, h, w)
    return F.conv3d(alone, kernel.view(1, 1, 3, 1, 1), padding=(1, 0, 0)).view(b, c, t, h, w).transpose(1, 2)


class LGTSMConv(nn.Module):
    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()
        self.k0, self.k1 = nn.Parameter(torch.tensor([0.0, 0.0, 1.0])), nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))
        self.feature = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)
        self.gating = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)

    def forward(self, x):
        fold = x.shape[2] // 4
        a, b, rest = torch.split(x, [fold, fold, x.shape[2] - 2 * fold], dim=2)
        h = torch.cat([shift(a, self.k0), shift(b, self.k1), rest], dim=2).flatten(0, 1)
        y = F.leaky_relu(self.feature(h), 0.2) * torch.sigmoid(self.gating(h))
        return y.view(*x.shape[:2], *y.shape[1:])


class Inpainter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.middle = LGTSMConv(4, width, stride=2), LGTSMConv(width, width)
        self.up, self.out = LGTSMConv(width, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, frames, holes):
        x = self.middle(self.down(torch.cat([frames, holes], dim=2)))
        x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        return torch.tanh(self.out(self.up(x).flatten(0, 1))).view_as(frames)


def module():
    return Inpainter(width=16)


def inputs(batch, length):  # length: frames
    frames = torch.randn(batch, length, 3, 8, 8)
    holes = (torch.rand(batch, length, 1, 8, 8) > 0.8).float()
    return frames * (1 - holes), holes
