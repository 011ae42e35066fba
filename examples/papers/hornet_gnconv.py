"""Recursive gated convolution: each further order multiplies with a wider part of one depthwise convolution.

Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", 2022, arXiv:2207.14284.

    [p_0, q] = proj_in(x),   q_0 .. q_{n-1} = split(s * dwconv_7(q))
    x_0 = p_0 * q_0,   x_i = PW_i(x_{i-1}) * q_i,   i = 1 .. n-1
    y = proj_out(x_{n-1});   block: x + gamma * y(LN x)

x, y: batch, C, height, width;  p_0: C / 2^{n-1} channels;  q_i: C / 2^{n-1-i};  gamma: one per channel, born at 1e-6.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("token-mixing", 6), ("residual-scale", 4)]  # order three, in two blocks of two branches each


class GnConv(nn.Module):
    def __init__(self, dim, order=3, s=1 / 3):
        super().__init__()
        self.dims = [dim // 2**i for i in reversed(range(order))]
        self.proj_in, self.proj_out = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.dwconv = nn.Conv2d(sum(self.dims), sum(self.dims), 7, padding=3, groups=sum(self.dims))
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.dims, self.dims[1:], strict=False))
        self.scale = s

    def forward(self, x):
        pwa, abc = torch.split(self.proj_in(x), (self.dims[0], sum(self.dims)), dim=1)
        dw_list = torch.split(self.dwconv(abc) * self.scale, self.dims, dim=1)
        x = pwa * dw_list[0]
        for pw, dw in zip(self.pws, dw_list[1:], strict=True):
            x = pw(x) * dw
        return self.proj_out(x)


class Block(nn.Module):
    def __init__(self, dim, gamma=1e-6):
        super().__init__()
        self.norm1, self.norm2, self.gnconv = nn.LayerNorm(dim), nn.LayerNorm(dim), GnConv(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = (nn.Parameter(gamma * torch.ones(dim)) for _ in range(2))

    def forward(self, x):
        normed = self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.gamma1.view(-1, 1, 1) * self.gnconv(normed)
        branch = self.norm2(x.permute(0, 2, 3, 1))
        branch = self.gamma2 * self.pwconv2(F.gelu(self.pwconv1(branch)))
        return x + branch.permute(0, 3, 1, 2)


def module():
    stem = nn.Conv2d(3, 16, 4, stride=4)
    return nn.Sequential(stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def inputs(batch, length):  # images, 4 * length wide
    return (torch.randn(batch, 3, 16, 4 * length),)
