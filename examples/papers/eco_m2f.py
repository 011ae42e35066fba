"""ECO-M2F: one linear layer looks at an image and says after how many encoder layers to stop.

Yao, Aich, Suh, Roy-Chowdhury, Shelton, Chandraker, "Efficient Transformer Encoders for Mask2Former-style models", 2024,
arXiv:2404.15244.

    g      = W mean(tokens of the lowest resolution) + b
    depth  = argmax_k g_k + 2
    x_l+1  = layer_l(x_l)  if l < depth  else  x_l
    target = softmax_k(PQ_k - beta k)
    L_gate = MSE(softmax(g), target)

g: batch, 5: at least two of the six layers of the pixel decoder's encoder run. PQ_k: the panoptic quality that the
trained model reaches on this image with k layers. Every image has a depth of its own: the released argmax, over
the whole tensor, allows for a batch of one only. The encoder here attends densely, not at deformable points.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("exit", 4)]
SKIPS = 4


class PixelDecoder(nn.Module):
    """Three resolutions as one sequence of tokens, encoded to a depth of the image's own."""

    def __init__(self, width, depth=6, least=2):
        super().__init__()
        self.least = least
        self.level = nn.Parameter(torch.zeros(3, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.gate = nn.Linear(width, depth - least + 1)

    def forward(self, maps):  # from the lowest resolution to the highest
        tokens = [m.flatten(2).transpose(1, 2) for m in maps]
        logits = self.gate(tokens[0].mean(dim=1))
        depth = (logits.argmax(dim=-1) + self.least)[:, None, None]
        x = torch.cat([t + level for t, level in zip(tokens, self.level, strict=True)], dim=1)
        for i, layer in enumerate(self.layers):
            x = layer(x) if i < self.least else torch.where(depth > i, layer(x), x)
        finest = x[:, -tokens[-1].shape[1] :].transpose(1, 2).unflatten(2, maps[-1].shape[2:])
        return x, finest, logits


class Segmenter(nn.Module):
    def __init__(self, width, classes, queries):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(3))
        self.pixels = PixelDecoder(width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.ask = nn.MultiheadAttention(width, 2, batch_first=True)
        self.classes, self.mask = nn.Linear(width, classes + 1), nn.Linear(width, width)

    def forward(self, image):
        maps = [F.relu(self.stem(image))]
        for stage in self.stages:
            maps.append(F.relu(stage(maps[-1])))
        x, finest, gate = self.pixels(maps[:0:-1])
        queries = self.queries.expand(len(image), -1, -1)
        queries = queries + self.ask(queries, x, x)[0]
        return self.classes(queries), torch.einsum("bqc,bchw->bqhw", self.mask(queries), finest), gate


def gate_loss(gate, quality, beta=0.01):
    """quality: batch, 5, the panoptic quality at each depth."""
    target = torch.softmax(quality - beta * torch.arange(quality.shape[1], device=quality.device), dim=-1)
    return F.mse_loss(gate.softmax(-1), target)


def module():
    return Segmenter(width=16, classes=4, queries=5)


def inputs(batch, length):  # length: the side of an image, in blocks of four pixels
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
