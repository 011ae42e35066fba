"""Feature equalisation of a mutual encoder-decoder: squeeze and excitation, then bilateral propagation.

Liu, Jiang, Song, Huang, Yang, "Rethinking Image Inpainting via a Mutual Encoder-Decoder with Feature Equalizations",
2020, arXiv:2007.06929.

    x = x * sigmoid(W2 relu(W1 GAP(x)))
    x_s[i] = sum_j gaussian(|i - j|) x[j]                 over all positions j
    x_r[i] = sum_j softmax_j(<x[i], x[j]>) x[j]           over the 3 x 3 neighbours j
    y = conv1x1([x_s, x_r])

x, y: batch, C, height, width, fused from the structure and the texture branch. Released code works on one image at a
time and takes sigmoid(x) for the similarities; here the batch is free.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("channel", 1)]


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channel, channel // reduction, 1), nn.Conv2d(channel // reduction, channel, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))).expand_as(x)


class BilateralPropagation(nn.Module):
    def __init__(self, channels, sigma=1.5):
        super().__init__()
        self.sigma = sigma
        self.down = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2))

    def spatial(self, x):
        b, c, h, w = x.shape
        grid = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
        place = torch.stack(grid, -1).reshape(h * w, 2).to(x.dtype)
        gaussian = torch.exp(-(place[:, None] - place[None]).square().sum(-1) / (2 * self.sigma**2))
        return (x.flatten(2) @ (gaussian / gaussian.sum(0))).view(b, c, h, w)

    def range(self, x):
        b, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(b, c, 9, h * w)
        similarity = (x.view(b, c, 1, h * w) * patches).sum(1)
        return (similarity.softmax(1).unsqueeze(1) * patches).sum(2).view(b, c, h, w)

    def forward(self, x):
        return self.down(torch.cat([self.spatial(x), self.range(x)], dim=1))


def module():
    return nn.Sequential(nn.Conv2d(32, 16, 1), SELayer(16), BilateralPropagation(16))


def inputs(batch, length):  # length: height of the concatenated features, but at least 2 for the norm
    return (torch.randn(batch, 32, max(length, 2), 4),)
