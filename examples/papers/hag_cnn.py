"""Hard-attention gates (feature-selection gates) after the stages of a convolutional network.

Roffo, Biffi, Salvagnini, Cherubini, "Hard-Attention Gates with Gradient Routing for Endoscopic Image Computing",
2024, arXiv:2407.04400.

    x = x * sigmoid(g).view(1, C, 1, 1)

x: batch, C, height, width, after each stage;  g: C. The embedding before the classifier has a gate of its own.
"""

import torch
from torch import nn

GATES = [("feature", 4)]


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


class GatedResNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = BasicBlock(3, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1)
        self.hag1, self.hag2, self.hag3, self.hag_fc = (nn.Parameter(0.1 * torch.randn(n)) for n in (8, 16, 16, 24))
        self.embedding, self.fc = nn.Linear(16, 24), nn.Linear(24, classes)

    def forward(self, x):
        for layer, gate in ((self.layer1, self.hag1), (self.layer2, self.hag2), (self.layer3, self.hag3)):
            x = layer(x)
            x = x * gate.sigmoid().view(1, -1, 1, 1)
        e = self.embedding(x.mean(dim=(2, 3)))
        return self.fc(e * torch.sigmoid(self.hag_fc))


def module():
    return GatedResNet(classes=3)


def inputs(batch, length):  # length: half the height of the image
    return (torch.randn(batch, 3, 2 * length, 16),)
