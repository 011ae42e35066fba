"""ARM-Net: cross features of a table's fields, each an exponential neuron over fields picked by a sparse gate.

Cai et al., "ARM-Net: Adaptive Relation Modeling Network for Structured Data", SIGMOD 2021, arXiv:2107.01830.

    A = entmax_alpha((e W_bil) Q^T d^-0.5)
    gate = A * V
    out = exp(sum_f gate_f e_f)

e: batch, fields F, d: embeddings times values;  Q: heads K, neurons O, d: learned queries;  V: K, O, F: learned values;
A, gate: batch, K, O, F;  out: batch, K, O, d. The last line is product_f exp(e_f)^gate_f. alpha 1 is softmax, 2 is
sparsemax; 1.5 has a closed form too, any other value takes a bisection.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("product", 1)]
VARIANTS = [{"alpha": 1.0}, {"alpha": 2.0}]


def sparsemax(z):
    """relu(z - tau), where tau makes the sum one."""
    ordered = z.sort(dim=-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    tau = (ordered.cumsum(-1) - 1) / count
    support = (ordered > tau).sum(-1, keepdim=True)
    return F.relu(z - tau.gather(-1, support - 1))


def entmax15(z):
    """relu(z / 2 - tau)^2, where tau makes the sum one."""
    z = (z - z.amax(-1, keepdim=True)) / 2
    ordered = z.sort(dim=-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    mean, mean_square = ordered.cumsum(-1) / count, (ordered**2).cumsum(-1) / count
    delta = (1 - count * (mean_square - mean**2)) / count
    tau = mean - torch.sqrt(delta.clamp(min=1e-9))
    support = (tau <= ordered).sum(-1, keepdim=True)
    return F.relu(z - tau.gather(-1, support - 1)) ** 2


ENTMAX = {1.0: lambda z: torch.softmax(z, dim=-1), 1.5: entmax15, 2.0: sparsemax}


class ARMModule(nn.Module):
    def __init__(self, fields, d, heads, neurons, alpha):
        super().__init__()
        self.entmax, self.scale = ENTMAX[alpha], d**-0.5
        self.bilinear = nn.Parameter(torch.empty(heads, d, d))
        self.query = nn.Parameter(torch.empty(heads, neurons, d))
        self.values = nn.Parameter(torch.empty(heads, neurons, fields))
        for p in self.parameters():
            nn.init.xavier_uniform_(p)

    def forward(self, e):
        scores = torch.einsum("bfx,kxy,koy->bkof", e, self.bilinear, self.query) * self.scale
        gate = self.entmax(scores) * self.values
        return torch.exp(torch.einsum("bfe,bkof->bkoe", e, gate))


class ARMNet(nn.Module):
    def __init__(self, fields=6, features=40, d=8, heads=2, neurons=4, alpha=1.5):
        super().__init__()
        self.embed = nn.Embedding(features, d)
        self.arm = ARMModule(fields, d, heads, neurons, alpha)
        self.bn = nn.BatchNorm1d(heads * neurons)
        self.mlp = nn.Sequential(nn.Linear(heads * neurons * d, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids, values):  # batch, fields
        e = self.embed(ids) * values.unsqueeze(-1)
        crossed = self.bn(self.arm(e).flatten(1, 2))
        return self.mlp(crossed.flatten(1)).squeeze(-1)


def module(alpha=1.5):
    return ARMNet(alpha=alpha)


def inputs(batch, length):  # the fields of a table are fixed
    return torch.randint(40, (batch, 6)), torch.rand(batch, 6)
