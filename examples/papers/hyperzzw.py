"""HyperZ.Z.W: a slow network makes a kernel of coordinates, the fast one multiplies its activations with it.

Zhang, "HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction", 2024, arXiv:2401.17948 (Terminator).

    K_h = SlowNet(coordinates),   K_ctx = x * K_h
    global:  O = K_ctx @ x
    local:   O = LocalConv(x_2; SlowNet(x_1)) + b
    channel interaction:  x * sigmoid(y * k_h * y),   y = mean(x),  k_h = SlowNet(coordinates of channels)

x: batch, C, N, N;  K_h: C, N, N, the same for every image, for any N;  @ multiplies the N x N matrices of each channel;
the local kernel is 3 x 3 per image and channel.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("feature", 1), ("channel", 1)]


def coordinates(like, *sizes):
    lines = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in sizes)
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


class SlowNet(nn.Module):
    """Coordinates to kernel values, through sines."""

    def __init__(self, dims, channels, hidden=12, omega=6.0):
        super().__init__()
        self.omega = omega
        self.first, self.second = nn.Linear(dims, hidden), nn.Linear(hidden, hidden)
        self.output_linear = nn.Linear(hidden, channels)

    def forward(self, at):
        h = torch.sin(self.omega * self.first(at))
        return self.output_linear(torch.sin(self.second(h)))


class GlobalHyperZZW(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slow_net = SlowNet(2, channels)

    def forward(self, x):
        hyper_kernel = self.slow_net(coordinates(x, x.shape[2], x.shape[3])).permute(2, 0, 1)
        context_kernel = x.mul(hyper_kernel)
        return torch.matmul(context_kernel, x)


class LocalHyperZZW(nn.Module):
    def __init__(self, channels, size=3):
        super().__init__()
        self.size, self.slow_net = size, nn.Linear(channels, channels * size * size)
        self.fast_bias = nn.Parameter(torch.zeros(1))

    def forward(self, x1, x2):
        b, c, h, w = x2.shape
        kernels = self.slow_net(F.adaptive_avg_pool2d(x1, 1).flatten(1)).view(b, c, self.size**2)
        windows = F.unfold(x2, self.size, padding=self.size // 2).view(b, c, self.size**2, h * w)
        return torch.einsum("bckn,bck->bcn", windows, kernels).view(b, c, h, w) + self.fast_bias


class HyperChannelInteract(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels, self.slow_net = channels, SlowNet(1, 1)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1)
        k = self.slow_net(coordinates(x, self.channels)).view(1, self.channels, 1, 1)
        return x * torch.sigmoid(y * k * y).expand_as(x)


class Block(nn.Module):
    """The global and the local branch side by side, mixed by a bottleneck."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.global_branch, self.local_branch = GlobalHyperZZW(channels), LocalHyperZZW(channels)
        self.interact, self.bottleneck = HyperChannelInteract(2 * channels), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x):
        h = self.norm(x)
        branches = torch.cat([self.global_branch(h), self.local_branch(x, h)], dim=1)
        return x + F.gelu(self.bottleneck(self.interact(branches)))


def module():
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), Block(12), nn.Conv2d(12, 3, 1))


def inputs(batch, length):  # square images
    return (torch.randn(batch, 3, 2 * length, 2 * length),)
