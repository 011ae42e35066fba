"""RTM's gated cross neighbourhood fusion: an image stream takes in what its forensic stream shows around each pixel.

Luo, Liu, Yang, Liu, Zeng, Zhou and Bai, "Toward Real Text Manipulation Detection: New Dataset and New Solution",
2023, arXiv:2312.06934.

    x' = (1 - tanh(g)) * x + tanh(g) * NeighbourhoodCrossAttention(x, y)          g: one number, born zero
    x' = x' + MLP(x')
    hub: w = softmax over the streams of Conv([mean, var, max, min] of each pixel's similarities);  out = sum_m w_m f_m

x, y, f_m: batch, height, width, channels. The released code takes its attention from natten; here it is an unfold.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("highway", 1), ("mixture", 1)]


class CrossNeighbourhood(nn.Module):
    def __init__(self, dim, heads=2, kernel=3):
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def around(self, y):
        """batch, pixels, heads, neighbours, channels of a head"""
        b, h, w, c = y.shape
        y = F.unfold(y.permute(0, 3, 1, 2), self.kernel, padding=self.kernel // 2)
        return y.view(b, self.heads, c // self.heads, self.kernel**2, h * w).permute(0, 4, 1, 3, 2)

    def forward(self, x, y):
        b, h, w, c = x.shape
        q = self.q(x).view(b, h * w, self.heads, 1, c // self.heads)
        attn = (q * (c // self.heads) ** -0.5 @ self.around(self.k(y)).transpose(-2, -1)).softmax(-1)
        return self.proj((attn @ self.around(self.v(y))).reshape(b, h, w, c))


class GatedFusion(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1_a, self.norm1_b, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = CrossNeighbourhood(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.gate = nn.Parameter(torch.tensor(0.0))

    def forward(self, x, y):
        a = self.attn(self.norm1_a(x), self.norm1_b(y))
        x = (1 - torch.tanh(self.gate)) * x + torch.tanh(self.gate) * a
        return x + self.mlp(self.norm2(x))


class Hub(nn.Module):
    """Consistency-aware aggregation: a stream counts where its pixels agree with the rest of it."""

    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(4, 1, 3, padding=1)

    def consistency(self, f):
        b, h, w, _ = f.shape
        f = F.normalize(f.flatten(1, 2), dim=-1)
        s = f @ f.transpose(1, 2)
        stats = torch.stack([s.mean(-1), s.var(-1, unbiased=False), s.amax(-1), s.amin(-1)], dim=1)
        return self.score(stats.view(b, 4, h, w))

    def forward(self, *streams):
        weights = torch.cat([self.consistency(f) for f in streams], dim=1).softmax(dim=1)
        return sum(weights[:, m, :, :, None] * f for m, f in enumerate(streams))


class Detector(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.rgb, self.noise = nn.Conv2d(3, dim, 4, stride=4), nn.Conv2d(1, dim, 4, stride=4)
        self.fuse, self.hub = GatedFusion(dim), Hub()
        self.head = nn.Conv2d(dim, 2, 1)

    def forward(self, image, noise):
        x, y = self.rgb(image).permute(0, 2, 3, 1), self.noise(noise).permute(0, 2, 3, 1)
        return self.head(self.hub(self.fuse(x, y), y).permute(0, 3, 1, 2))


def module():
    return Detector()


def inputs(batch, length):  # length: patches along a side
    return torch.randn(batch, 3, 4 * length, 4 * length), torch.randn(batch, 1, 4 * length, 4 * length)
