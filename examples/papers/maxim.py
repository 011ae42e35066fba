"""MAXIM: multi-axis gated MLPs, cross-gating, channel attention and supervised attention of an image restorer.

Tu et al., "MAXIM: Multi-Axis MLP for Image Processing", CVPR 2022, arXiv:2201.02973.

    gMLP:  u, v = split(gelu(Dense x));  y = Dense(u * (Dense_positions(LN v) + 1)) + x
    cross-gating:  g(x) = Dense [Dense_grid(u), Dense_block(v)],   y' = y * g(x),   x' = x * g(y)
    SAM:  y = conv_1(x) * sigmoid(conv_3(image')) + x,   image' = conv_2(x) + image

x, y: batch, height, width, C. Dense_positions runs over the cells of a grid (global) in one half of the channels and
over the pixels of a block (local) in the other. Its biases start at one.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("token-mixing", 4), ("channel", 1), ("glu", 1)]  # grid, block, two crossed; squeeze and excite; SAM


def split_blocks(x, fh, fw):
    """batch, blocks, pixels of a block, channels; with fh, fw = height / 4, width / 4 the blocks are a grid's cells."""
    b, h, w, c = x.shape
    return x.view(b, h // fh, fh, w // fw, fw, c).permute(0, 1, 3, 2, 4, 5).reshape(b, -1, fh * fw, c)


def join_blocks(x, h, w, fh, fw):
    return x.view(x.shape[0], h // fh, w // fw, fh, fw, -1).permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], h, w, -1)


class PositionsDense(nn.Module):
    """Along the sixteen cells of a grid, or along the sixteen pixels of a block."""

    def __init__(self, grid):
        super().__init__()
        self.grid, self.dense = grid, nn.Linear(16, 16)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.ones_(self.dense.bias)

    def forward(self, x):
        h, w = x.shape[1:3]
        fh, fw = (h // 4, w // 4) if self.grid else (4, 4)
        x = split_blocks(x, fh, fw)
        turned = (1, 3) if self.grid else (2, 3)
        return join_blocks(self.dense(x.transpose(*turned)).transpose(*turned), h, w, fh, fw)


class GatedMLP(nn.Module):
    def __init__(self, c, grid):
        super().__init__()
        self.norm, self.inner_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.dense1, self.dense2, self.positions = nn.Linear(c, 2 * c), nn.Linear(c, c), PositionsDense(grid)

    def forward(self, x):
        u, v = F.gelu(self.dense1(self.norm(x))).chunk(2, dim=-1)
        return self.dense2(u * (self.positions(self.inner_norm(v)) + 1.0)) + x


class MultiAxis(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.grid, self.block, self.out = GatedMLP(c // 2, True), GatedMLP(c // 2, False), nn.Linear(c, c)

    def forward(self, x):
        u, v = x.chunk(2, dim=-1)
        return x + self.out(torch.cat([self.grid(u), self.block(v)], dim=-1))


class CrossGating(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(2))
        self.ins, self.outs = (nn.ModuleList(nn.Linear(c, c) for _ in range(2)) for _ in range(2))
        self.grids, self.blocks = (nn.ModuleList(PositionsDense(g) for _ in range(2)) for g in (True, False))
        self.mixes = nn.ModuleList(nn.Linear(c, c) for _ in range(2))

    def weights(self, i, x):
        u, v = x.chunk(2, dim=-1)
        return self.mixes[i](torch.cat([self.grids[i](u), self.blocks[i](v)], dim=-1))

    def forward(self, x, y):
        a, b = (F.gelu(self.ins[i](self.norms[i](t))) for i, t in enumerate((x, y)))
        ga, gb = self.weights(0, a), self.weights(1, b)
        return self.outs[0](a * gb) + x, self.outs[1](b * ga) + y


class ChannelAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x):
        y = self.conv2(F.leaky_relu(self.conv1(x), 0.2))
        return x + y * torch.sigmoid(self.up(F.relu(self.down(self.pool(y)))))


class Restorer(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(3, c, 1)
        self.mlp, self.channels, self.cross = MultiAxis(c), ChannelAttention(c), CrossGating(c)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(c, c, 1), nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)

    def forward(self, image):
        x = self.channels(self.mlp(self.stem(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x, y = self.cross(x.permute(0, 2, 3, 1), self.side(image).permute(0, 2, 3, 1))
        x = (x + y).permute(0, 3, 1, 2)
        restored = self.conv2(x) + image
        return restored, self.conv1(x) * torch.sigmoid(self.conv3(restored)) + x


def module():
    return Restorer()


def inputs(batch, length):  # images, 4 * length wide
    return (torch.randn(batch, 3, 8, 4 * length),)
