"""Attention subnet of an ensemble of 1-D convolutional networks: gates on channels and on frames of a skeleton.

Xu, Wang, "Ensemble One-dimensional Convolution Neural Networks for Skeleton-based Action Recognition", 2018.

    c = sigmoid(W2 relu(W1 mean_T(x)))
    f = sigmoid(conv1d(x))
    y = x * c[..., None] * f

x, y: batch, C, T frames;  c: batch, C;  f: batch, 1, T. The abstract names only "key frames and feature channels";
squeeze and excitation on channels times a sigmoid convolution over frames is the smallest reading of it.
"""

import torch
from torch import nn

GATES = [("channel", 2), ("spatial", 2)]


class FrameAndChannelAttention(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
        self.frame = nn.Conv1d(channels, 1, kernel_size=3, padding=1)

    def forward(self, x):
        c = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=2)))))
        f = torch.sigmoid(self.frame(x))
        return x * c[..., None] * f


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(channels, channels, 3, padding=1), nn.BatchNorm1d(channels))
        self.attention = FrameAndChannelAttention(channels)

    def forward(self, x):
        return torch.relu(x + self.attention(self.body(x)))


class AttentionNet(nn.Module):
    def __init__(self, joints, channels, actions):
        super().__init__()
        self.stem = nn.Conv1d(3 * joints, channels, 1)
        self.blocks = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))
        self.classify = nn.Linear(channels, actions)

    def forward(self, skeleton):  # batch, frames, joints, xyz
        x = self.blocks(self.stem(skeleton.flatten(2).transpose(1, 2)))
        return self.classify(x.mean(2))


def module():
    return AttentionNet(joints=7, channels=24, actions=5)


def inputs(batch, length):  # length: frames
    return (torch.randn(batch, length, 7, 3),)
