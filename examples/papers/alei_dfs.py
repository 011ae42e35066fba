"""ALEI's dynamic feature selection: one softmax weight for each low-level view of an image and for the image itself.

Zhou et al., "Exploring the Collaborative Advantage of Low-level Information on Generalizable AI-Generated Image
Detection", 2025, arXiv:2504.00463.

    h_k = W x_k + B_k A_k x_k                       low-rank expert of low-level type k, B_k = 0 at the start
    z_0 = z_0 + CrossAttention(z_0, [h_1 .. h_K])   at intermediate layers
    p   = softmax(W_s [pool z_0; ..; pool z_K])
    z   = sum_k p_k pool(z_k)

x_0: batch, tokens, width, of the image;  x_k: of its low-level type k (here residuals of fixed high-pass filters);
p: batch, K + 1. The paper does not spell the selector out: this is the least reading, one weight per image and stream.
"""

import torch
from torch import nn

GATES = [("mixture", 1)]


class LoRALinear(nn.Linear):
    """One weight, and a low-rank expert for each of the low-level types."""

    def __init__(self, width_in, width_out, experts, rank):
        super().__init__(width_in, width_out)
        self.A = nn.Parameter(torch.randn(experts, rank, width_in) / width_in**0.5)
        self.B = nn.Parameter(torch.zeros(experts, width_out, rank))

    def forward(self, x, expert=None):
        y = super().forward(x)
        return y if expert is None else y + x @ self.A[expert].T @ self.B[expert].T


class Layer(nn.Module):
    def __init__(self, width, experts, rank=2):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = LoRALinear(width, 2 * width, experts, rank), LoRALinear(2 * width, width, experts, rank)
        self.fuse = nn.MultiheadAttention(width, 4, batch_first=True)

    def mlp(self, x, expert=None):
        return x + self.down(torch.relu(self.up(self.norm1(x), expert)), expert)

    def forward(self, streams):
        image, *low = (self.mlp(z, k - 1 if k else None) for k, z in enumerate(streams))
        memory = torch.cat(low, dim=1)
        return [image + self.fuse(self.norm2(image), memory, memory, need_weights=False)[0], *low]


class Detector(nn.Module):
    def __init__(self, width, experts, patch=4, layers=2):
        super().__init__()
        self.residuals = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, groups=3) for _ in range(experts))
        self.residuals.requires_grad_(False)
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.layers = nn.ModuleList(Layer(width, experts) for _ in range(layers))
        self.select = nn.Linear((experts + 1) * width, experts + 1)
        self.classifier = nn.Linear(width, 1)

    def forward(self, image):
        views = [image, *(image - smooth(image) for smooth in self.residuals)]
        streams = [self.embed(view).flatten(2).transpose(1, 2) for view in views]
        for layer in self.layers:
            streams = layer(streams)
        pooled = torch.stack([z.mean(1) for z in streams], dim=1)
        p = self.select(pooled.flatten(1)).softmax(-1)
        return self.classifier((p.unsqueeze(-1) * pooled).sum(1)).squeeze(-1)


def module(experts=3):
    return Detector(width=16, experts=experts)


def inputs(batch, length):  # length: the side of an image, in patches
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
