"""HBFormer's multi-scale fusion decoder: dilated branches of mixed experts, closed by efficient channel attention.

Zheng et al., "HBFormer: A Hybrid-Bridge Transformer for Microtumor and Miniature Organ Segmentation", 2025,
arXiv:2512.03597.

    s = GAP(x);    bw = softmax(MLP_b s);    ew = softmax(MLP_e s)
    f_d = bw_d * SiLU(BN(sum_e ew_e * PW_e(DW_{e,d}(x))))
    y = Conv1x1(ECA(concat_d f_d))            ECA(z) = z * sigmoid(conv1d(GAP(z)))

x, y: batch, C, height, width;  d: three dilations, under weights bw;  e: four experts, under weights ew that all
dilations share. The abstract speaks of channel and spatial attention; the released decoder has no spatial gate.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 2), ("channel", 1)]


class ECA(nn.Module):
    def __init__(self, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, z):
        return z * torch.sigmoid(self.conv(z.mean((2, 3)).unsqueeze(1))).squeeze(1)[..., None, None]


def separable(channels, d):
    depthwise = nn.Conv2d(channels, channels, 3, padding=d, dilation=d, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1, bias=False))


class DilatedExperts(nn.Module):
    def __init__(self, channels, experts, dilations=(1, 2, 3)):
        super().__init__()
        self.branch_mlp = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Linear(8, len(dilations)))
        self.expert_mlp = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Linear(8, experts))
        self.branches = nn.ModuleList(nn.ModuleList(separable(channels, d) for _ in range(experts)) for d in dilations)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in dilations)
        self.eca, self.project = ECA(), nn.Conv2d(len(dilations) * channels, channels, 1)

    def forward(self, x):
        s = F.adaptive_avg_pool2d(x, 1).flatten(1)
        bw, ew = self.branch_mlp(s).softmax(dim=1), self.expert_mlp(s).softmax(dim=1)
        scales = []
        for d, (experts, norm) in enumerate(zip(self.branches, self.norms, strict=True)):
            f = sum(ew[:, e].view(-1, 1, 1, 1) * expert(x) for e, expert in enumerate(experts))
            scales.append(F.silu(norm(f)) * bw[:, d].view(-1, 1, 1, 1))
        return x + self.project(self.eca(torch.cat(scales, dim=1)))


def module(experts=4):
    return DilatedExperts(channels=12, experts=experts)


def inputs(batch, length):  # length: height of the features
    return (torch.randn(batch, 12, length, 4),)
