"""Chain-of-Model: hidden units in a chain of groups, each of which sees only the groups before it.

Song et al., "Chain-of-Model Learning for Language Model", NeurIPS 2025, arXiv:2505.11820.

    y = (W * M) x,   M_ij = 1[chain(i) >= chain(j)]

x, y: chains of units, side by side;  M: block lower triangular. The first chains alone are a smaller model, which
gives the same numbers for them. From the abstract; the mask is fixed, so that nothing is decided and nothing learned.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []


class ChainLinear(nn.Linear):
    def __init__(self, inner, outer, chains):
        super().__init__(inner, outer)
        of_in, of_out = torch.arange(inner) * chains // inner, torch.arange(outer) * chains // outer
        self.register_buffer("mask", (of_out[:, None] >= of_in[None, :]).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class ChainNorm(nn.Module):  # each chain by its own mean square
    def __init__(self, width, chains):
        super().__init__()
        self.chains, self.weight = chains, nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = x.unflatten(-1, (self.chains, -1))
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).flatten(-2) * self.weight


class Layer(nn.Module):
    def __init__(self, width, chains):
        super().__init__()
        self.heads = chains  # heads of one chain each
        self.norm1, self.norm2 = ChainNorm(width, chains), ChainNorm(width, chains)
        self.q, self.k, self.v, self.o = (ChainLinear(width, width, chains) for _ in range(4))
        self.up, self.down = ChainLinear(width, 2 * width, chains), ChainLinear(2 * width, width, chains)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(h.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def module(chains=4):
    return nn.Sequential(Layer(32, chains), Layer(32, chains))


def inputs(batch, length):
    return (torch.randn(batch, length, 32),)
