"""LWGA: light-weight grouped attention, four channel groups each with an attention of its own range.

Lu et al., "LWGANet: A Lightweight Group Attention Backbone for Remote Sensing Visual Tasks", 2025, arXiv:2501.10040.

    x1, x2, x3, x4 = split(x)
    point:   y1 = x1 + x1 * sigmoid(W2 act(BN(W1 x1)))                        W1 expands by 4
    local:   y2 = act(BN(conv3x3(x2)))
    medium:  y3 = x3 * up(sigmoid(BN(sum of four strip convolutions of pool(x3))))
    global:  y4 = BN(x4 + unpool(W (u * W (s1 * a1 + s2 * a2)))),   s = sigmoid(conv7x7[mean(a); max(a)])
    x + BN(MLP([y1; y2; y3; y4]))

x: batch, channels, height, width; u is x4 pooled and projected, a1 and a2 a 5x5 and a dilated 7x7 depthwise convolution
of it. Two of the strips run along diagonals, which shifting each row by one more turns into columns. The abstract names
no gate; the released code, which pools with a blur before the strips, holds those above.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("product", 1), ("mixture", 1), ("token-mixing", 2)]


def slanted(x):
    """Row i shifted right by i places."""
    b, c, h, w = x.shape
    x = F.pad(x, (0, h)).reshape(b, c, -1)[..., : h * (w + h - 1)]
    return x.reshape(b, c, h, w + h - 1)


def upright(x, w):
    b, c, h, _ = x.shape
    return F.pad(x.reshape(b, c, -1), (0, h)).reshape(b, c, h, w + h)[..., :w]


class PointAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.p_conv = nn.Sequential(
            nn.Conv2d(dim, 4 * dim, 1, bias=False), nn.BatchNorm2d(4 * dim), nn.GELU(),
            nn.Conv2d(4 * dim, dim, 1, bias=False),
        )  # fmt: skip
        self.gate_fn = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate_fn(self.p_conv(x))


class MediumRangeAttention(nn.Module):
    def __init__(self, dim, k=11):
        super().__init__()
        tall = {"kernel_size": (k, 3), "padding": (k // 2, 1), "groups": dim, "bias": False}
        flat = {"kernel_size": (3, k), "padding": (1, k // 2), "groups": dim, "bias": False}
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 3, 1))
        self.h1, self.h2 = nn.Conv2d(dim, dim, **tall), nn.Conv2d(dim, dim, **tall)
        self.v1, self.v2 = nn.Conv2d(dim, dim, **flat), nn.Conv2d(dim, dim, **flat)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x):
        z = self.pool(x)
        h2 = upright(self.h2(slanted(z)), z.shape[-1])
        v2 = upright(self.v2(slanted(z.mT).mT).mT, z.shape[-2]).mT
        att = self.norm(self.h1(z) + self.v1(z) + h2 + v2)
        return x * F.interpolate(torch.sigmoid(att), size=x.shape[-2:], mode="nearest")


class GlobalAttention(nn.Module):
    """The large-kernel selection of the first two stages, at half the resolution."""

    def __init__(self, dim):
        super().__init__()
        self.proj_1, self.proj_2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim // 2, 1), nn.Conv2d(dim, dim // 2, 1)
        self.conv_squeeze, self.conv = nn.Conv2d(2, 2, 7, padding=3), nn.Conv2d(dim // 2, dim, 1)

    def forward(self, x):
        u, idx = F.max_pool2d(x, 2, return_indices=True)
        u = F.gelu(self.proj_1(u))
        attn1 = self.conv0(u)
        attn2 = self.conv_spatial(attn1)
        attn1, attn2 = self.conv1(attn1), self.conv2(attn2)
        attn = torch.cat([attn1, attn2], dim=1)
        agg = torch.cat([attn.mean(1, keepdim=True), attn.amax(1, keepdim=True)], dim=1)
        sig = self.conv_squeeze(agg).sigmoid()
        attn = self.conv(attn1 * sig[:, 0].unsqueeze(1) + attn2 * sig[:, 1].unsqueeze(1))
        return F.max_unpool2d(self.proj_2(u * attn), idx, 2)


class Block(nn.Module):
    def __init__(self, dim, mlp_ratio=2):
        super().__init__()
        part = dim // 4
        self.pa, self.mra, self.ga = PointAttention(part), MediumRangeAttention(part), GlobalAttention(part)
        self.la = nn.Sequential(nn.Conv2d(part, part, 3, padding=1, bias=False), nn.BatchNorm2d(part), nn.GELU())
        self.norm, self.norm1 = nn.BatchNorm2d(part), nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, mlp_ratio * dim, 1, bias=False), nn.BatchNorm2d(mlp_ratio * dim), nn.GELU(),
            nn.Conv2d(mlp_ratio * dim, dim, 1, bias=False),
        )  # fmt: skip

    def forward(self, x):
        x1, x2, x3, x4 = x.chunk(4, dim=1)
        x1 = x1 + self.pa(x1)
        x4 = self.norm(x4 + self.ga(x4))
        return x + self.norm1(self.mlp(torch.cat([x1, self.la(x2), self.mra(x3), x4], dim=1)))


def module():
    return nn.Sequential(nn.Conv2d(3, 32, 4, 4, bias=False), nn.BatchNorm2d(32), Block(32))


def inputs(batch, length):  # length: an eighth of the side of a square image
    return (torch.randn(batch, 3, 8 * length, 8 * length),)
