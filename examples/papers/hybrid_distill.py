"""Hybrid distillation with progressive redundant token masking: deeper layers keep fewer, less redundant tokens.

Shi et al., "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners", 2023, arXiv:2306.15876.

    redundancy_i = mean over j of cos(x_i, x_j);   keep the k_l tokens of least redundancy, of those kept before
    x <- block_l(x) among the kept tokens,   x <- x * keep

x: batch, tokens, width;  k_l falls with the layer l. The abstract does not give the criterion: this is one. Masked
and dense. The student's features and token relations are returned, for `losses` with the teachers' of two kinds.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("hard", 2)]


def least_redundant(x, keep, ratio):
    """Ones at the share of tokens that resembles the others least, out of those kept so far."""
    n = F.normalize(x, dim=-1)
    redundancy = (n @ n.transpose(1, 2) * keep.transpose(1, 2)).mean(dim=-1)
    redundancy = redundancy.masked_fill(keep.squeeze(-1) == 0, 2.0)
    count = max(int(ratio * x.shape[1]), 1)
    index = redundancy.topk(count, dim=-1, largest=False).indices
    return torch.zeros_like(redundancy).scatter(1, index, 1.0).unsqueeze(-1)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, keep):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(keep.transpose(1, 2).unsqueeze(1) == 0, -1e9)
        relations = scores.softmax(dim=-1)
        x = x + self.proj((relations @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), relations


class Student(nn.Module):
    def __init__(self, width, ratios):
        super().__init__()
        self.ratios, self.embed = ratios, nn.Linear(12, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in ratios)

    def forward(self, patches):
        x = self.embed(patches)
        keep = torch.ones_like(x[..., :1])
        for block, ratio in zip(self.blocks, self.ratios, strict=True):
            if ratio < 1:
                keep = least_redundant(x.detach(), keep, ratio)
            x, relations = block(x * keep if ratio < 1 else x, keep)
        return x, relations


def losses(features, relations, teacher_features, teacher_relations):
    """Features of a contrastive teacher, token relations of a masked autoencoder."""
    likeness = F.kl_div(relations.clamp_min(1e-8).log(), teacher_relations, reduction="batchmean")
    return F.smooth_l1_loss(features, F.layer_norm(teacher_features, teacher_features.shape[-1:])) + likeness


def module():
    return Student(24, (1.0, 0.7, 0.4))


def inputs(batch, length):
    return (torch.randn(batch, length, 12),)
