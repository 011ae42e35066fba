"""Gated associative memory: a causal convolution and a bank of learned memories, each under a gate, for attention.

Acharya, "Gated Associative Memory: A Parallel O(N) Architecture for Efficient Sequence Modeling", 2025,
arXiv:2509.00605.

    u      = LayerNorm(x)
    local  = causal depthwise convolution of u, kernel 3
    global = softmax(u M^T) M
    y      = x + sigmoid(Wl u) * local + sigmoid(Wg u) * global

x, u, local, global, y: batch, length, width;  M: slots x width, 512 slots in the paper, and no scale in the softmax.
A feed-forward layer follows as in a transformer. One linear layer makes both gates, as in the authors' code.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("mixture", 2)]


class GAMBlock(nn.Module):
    def __init__(self, d_model, num_slots, kernel_size=3):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.conv = nn.Conv1d(d_model, d_model, kernel_size, padding=kernel_size - 1, groups=d_model)
        self.memory_bank = nn.Parameter(torch.randn(num_slots, d_model) * 0.1)
        self.gate = nn.Linear(d_model, 2 * d_model)
        self.ffn = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x):
        u = self.norm1(x)
        local = self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        globe = torch.matmul(F.softmax(u @ self.memory_bank.t(), dim=-1), self.memory_bank)
        local_gate, global_gate = torch.sigmoid(self.gate(u)).chunk(2, dim=-1)
        x = x + local_gate * local + global_gate * globe
        return x + self.ffn(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, vocab, d_model, layers, num_slots, context=512):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, d_model), nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(GAMBlock(d_model, num_slots) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, vocab, bias=False)

    def forward(self, ids):
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def module():
    return LanguageModel(vocab=60, d_model=24, layers=2, num_slots=16)


def inputs(batch, length):
    return (torch.randint(0, 60, (batch, length)),)
