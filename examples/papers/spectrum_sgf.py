"""SPECTRUM's self-gated fusion: temporal and frequency features of a signature, balanced by themselves.

Zhang, Ding and Jin, "Capturing More: Learning Multi-Domain Representations for Robust Online Handwriting
Verification", 2025, ACM MM, arXiv:2508.01427.

    g = sigmoid(W [h_time; h_freq] + b)
    h = g * h_time + (1 - g) * h_freq

h_time, h_freq, g, h: batch, width. The abstract leaves open whether each stream gates itself; this is the joint form.
"""

import torch
from torch import nn

GATES = [("highway", 1)]


class SelfGatedFusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.balance = nn.Linear(2 * width, width)

    def forward(self, h_time, h_freq):
        g = self.balance(torch.cat((h_time, h_freq), dim=-1)).sigmoid()
        return torch.lerp(h_freq, h_time, g)  # g of the temporal features, 1 - g of the others


def encoder(channels, width):
    return nn.Sequential(
        nn.Conv1d(channels, width, 3, padding=1),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Conv1d(width, width, 3, padding=1),
        nn.ReLU(),
    )


class Verifier(nn.Module):
    """Embeds a pen's trajectory; two embeddings are compared by their distance."""

    def __init__(self, channels=4, width=24):
        super().__init__()
        self.temporal, self.frequency = encoder(channels, width), encoder(channels, width)
        self.fusion = SelfGatedFusion(width)
        self.embed = nn.Linear(width, width)

    def forward(self, pen):  # batch, time, (x, y, pressure, angle)
        x = pen.transpose(1, 2)
        spectrum = torch.fft.rfft(x, dim=-1).abs()
        h = self.fusion(self.temporal(x).mean(-1), self.frequency(spectrum).mean(-1))
        return nn.functional.normalize(self.embed(h), dim=-1)


def module():
    return Verifier()


def inputs(batch, length):
    return (torch.randn(batch, length, 4),)
