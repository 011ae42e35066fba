"""Domain-conditioned channel attention: squeeze and excitation whose first layer belongs to a domain.

Li, Xie, Lin, Liu, Huang, Wang, "Generalized Domain Conditioned Adaptation Network", 2021, arXiv:2103.12339.

    s = GAP(x)
    a = sigmoid(W2 relu(W_src s))  for the source,    a = sigmoid(W2 relu(W_tgt s))  for the target
    y = x * a
    p = tanh(|dev_src - dev_tgt| / dev_tgt),  dev = mean / std of s;    p < eta: W_src serves both domains

x, y: batch, C, height, width;  s, a: batch, C;  domain: batch, 0 for source and 1 for target. Released code keeps the
domain and the switch in Python flags; here the domain is an input and the switch a buffer.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("channel", 1)]
SKIPS = 2  # the layer of each domain that no image is of


class DomainConditionedAttention(nn.Module):
    def __init__(self, channels, reduction=4, eta=0.1):
        super().__init__()
        self.fc_source, self.fc_target = (nn.Linear(channels, channels // reduction) for _ in range(2))
        self.fc2, self.eta = nn.Linear(channels // reduction, channels), eta
        self.register_buffer("shared", torch.tensor(False))

    def forward(self, x, domain):
        s = F.adaptive_avg_pool2d(x, 1).flatten(1)
        from_source = (domain == 0).unsqueeze(1) | self.shared
        hidden = torch.where(from_source, self.fc_source(s), self.fc_target(s))
        a = torch.sigmoid(self.fc2(F.relu(hidden)))
        return x * a[:, :, None, None]

    @torch.no_grad()
    def switch(self, source, target):
        """Whether both domains share a layer, from the pooled features of each."""
        dev_source, dev_target = (s.mean() / s.std() for s in (source, target))
        self.shared.copy_(torch.tanh((dev_source - dev_target).abs() / dev_target) < self.eta)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.attention = DomainConditionedAttention(channels)

    def forward(self, x, domain):
        return F.relu(x + self.attention(self.bn(self.conv(x)), domain))


def module():
    return Block(16)


def inputs(batch, length):  # length: width of the features
    return torch.randn(batch, 16, 4, length), torch.arange(batch) % 2
