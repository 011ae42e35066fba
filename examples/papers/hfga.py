"""DOLPHIN's high-frequency gated attention: a stroke's own details, attended to under a tanh born at zero.

Zhang, Jin, "Online Writer Retrieval with Chinese Handwritten Phrases: A Synergistic Temporal-Frequency Representation
Learning Approach", 2024, arXiv:2412.11668.

    w = high band of DWT(x)
    y = x + tanh(alpha) * CrossAttn(q=x, kv=w)

x, y: batch, steps, width;  w: batch, steps / 2, width, by the Haar wavelet;  alpha: one number, zero at first.
The released network adds the residual once more around the block. Beside it stands the CAIR block: an inverted
residual of convolutions along time with a channel shuffle and squeeze and excitation.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("residual-scale", 1), ("channel", 1)]


class HFGA(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.alpha = nn.Parameter(torch.tensor(0.0))

    def high_band(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
        return (x[:, 0::2] - x[:, 1::2]) / math.sqrt(2)

    def forward(self, x):
        w = self.norm(self.high_band(x))
        out, _ = self.cross_attn(x, w, w, need_weights=False)
        return x + self.alpha.tanh() * out


class CAIR(nn.Module):
    def __init__(self, channels, groups=2):
        super().__init__()
        self.groups = groups
        self.expand = nn.Conv1d(channels, 2 * channels, 1, groups=groups)
        self.depthwise = nn.Conv1d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.reduce, self.restore = nn.Linear(2 * channels, channels // 2), nn.Linear(channels // 2, 2 * channels)
        self.project = nn.Conv1d(2 * channels, channels, 1, groups=groups)

    def shuffle(self, x):
        b, c, t = x.shape
        return x.view(b, self.groups, c // self.groups, t).transpose(1, 2).reshape(b, c, t)

    def forward(self, x):
        h = F.hardswish(self.depthwise(self.shuffle(F.hardswish(self.expand(x)))))
        s = torch.sigmoid(self.restore(F.relu(self.reduce(h.mean(-1)))))
        return x + self.project(h * s[:, :, None])


class Encoder(nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.stem, self.cair, self.hfga = nn.Conv1d(features, width, 3, padding=1), CAIR(width), HFGA(width, 2)

    def forward(self, strokes):  # batch, steps, features of the pen
        return self.hfga(self.cair(self.stem(strokes.transpose(1, 2))).transpose(1, 2))


def module():
    return Encoder(features=6, width=24)


def inputs(batch, length):  # length: steps of the pen
    return (torch.randn(batch, length, 6),)
