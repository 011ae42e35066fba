"""SwinFace's multi-level channel attention: channel and spatial gates of each task on shared features of all levels.

Qin et al., "SwinFace: A Multi-task Transformer for Face Recognition, Expression Recognition, Age Estimation and
Attribute Estimation", 2023, arXiv:2308.11509. Channels as in Woo et al., "CBAM", 2018.

    x = x * sigmoid(MLP(avgpool(x)) + MLP(maxpool(x)))
    x = x * max_k sigmoid(conv_k2(relu(conv_k1(x))))

x: batch, C, height, width, from the concatenated levels of the backbone. The second line holds K local attention maps,
of which one, chosen at random, is zeroed with probability 0.6 in training; released code zeroes it in evaluation, too.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("channel", 2), ("spatial", 2)]


class ChannelGate(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        hidden = channels // reduction
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x):
        total = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class LANets(nn.Module):
    def __init__(self, channels, branches=2, p=0.6):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels // 2, 1), nn.ReLU(), nn.Conv2d(channels // 2, 1, 1), nn.Sigmoid()
            )
            for _ in range(branches)
        )
        self.p = p

    def attention_dropping(self, maps):
        one = F.one_hot(torch.rand(maps.shape[:2], device=maps.device).argmax(1), maps.shape[1])
        dropped = one * (torch.rand(len(maps), 1, device=maps.device) < self.p)
        return maps * (1 - dropped)[:, :, None, None]

    def forward(self, x):
        maps = torch.cat([net(x) for net in self.nets], dim=1)
        if self.training and len(self.nets) > 1:
            maps = self.attention_dropping(maps)
        return x.mul(maps.max(dim=1, keepdim=True).values)


class Analysis(nn.Module):
    """One task's subnet."""

    def __init__(self, in_channels, channels, outputs):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.channel_attention, self.spatial_attention = ChannelGate(channels), LANets(channels)
        self.norm, self.fc = nn.BatchNorm1d(channels), nn.Linear(channels, outputs)

    def forward(self, x):
        x = self.spatial_attention(self.channel_attention(self.conv(x)))
        return self.fc(self.norm(F.relu(x).amax((2, 3))))


class Tasks(nn.ModuleDict):
    def forward(self, levels):
        return {task: net(levels) for task, net in self.items()}


def module():
    return Tasks({"expression": Analysis(24, 16, 7), "age": Analysis(24, 16, 1)})


def inputs(batch, length):  # length: height of the levels' features
    return (torch.randn(batch, 24, length, 4),)
