"""TaskExpert: shared token experts, one dense gate per task, and a memory per task as a further expert.

Ye, Xu, "TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts", 2023,
arXiv:2307.15324.

    g_t = softmax(G_t(x))
    y_t = sum_k g_tk * e_k(x) + g_t,K+1 * m_t
    m_t <- eta * m_t + (1 - eta) * y_t

x, e_k(x), y_t, m_t: batch, tokens, width;  g_t: batch, tokens, K + 1. The memory goes from layer to layer; before the
first one it is a learned row per task. The paper leaves the update open: the minimal reading, a moving average.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 4)]


class Expert(nn.Module):
    def __init__(self, width, rank):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)

    def forward(self, x):
        return self.up(F.gelu(self.down(x)))


class MemorialMoE(nn.Module):
    def __init__(self, width, experts, tasks, eta=0.9):
        super().__init__()
        self.experts = nn.ModuleList(Expert(width, width // 2) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, experts + 1) for _ in range(tasks))
        self.eta = eta

    def forward(self, x, memories):
        shared = [expert(x) for expert in self.experts]
        outputs, updated = [], []
        for gate, memory in zip(self.gates, memories, strict=True):
            g = F.softmax(gate(x), dim=-1)
            y = torch.einsum("bnk,bnkc->bnc", g, torch.stack([*shared, memory], dim=2))
            outputs.append(y)
            updated.append(self.eta * memory + (1 - self.eta) * y)
        return outputs, updated


class TaskExpert(nn.Module):
    """A vision transformer; after each block every task decodes its tokens."""

    def __init__(self, width, experts, outputs=(7, 1), depth=2):
        super().__init__()
        self.patches = nn.Linear(12, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.decoders = nn.ModuleList(MemorialMoE(width, experts, len(outputs)) for _ in range(depth))
        self.memory = nn.Parameter(0.02 * torch.randn(len(outputs), width))
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in outputs)

    def forward(self, patches):  # batch, tokens, pixels
        x = self.patches(patches)
        memories = [m.expand_as(x) for m in self.memory]
        for block, decoder in zip(self.blocks, self.decoders, strict=True):
            x = block(x)
            features, memories = decoder(x, memories)
        return [head(y) for head, y in zip(self.heads, features, strict=True)]


def module(experts=3):
    return TaskExpert(16, experts)


def inputs(batch, length):
    return (torch.randn(batch, length, 12),)
