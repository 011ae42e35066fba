"""Hard attention: a query reads the single best position, or the mean of all the best ones.

Hao, Angluin and Frank, "Formal Language Recognition by Hard Attention Transformers: Perspectives from Circuit
Complexity", 2022, arXiv:2204.06618.

    s_ij = <q_i, k_j>
    unique:   o_i = v_j   for the leftmost j with s_ij = max_j' s_ij'
    average:  o_i = mean of the v_j over all such j

q, k, v, o: batch, heads, positions, width. A model of theory, without gradient to q and k. Here it stands
in place of an encoder's softmax, which trains it; in evaluation it reads hard.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []
VARIANTS = [{"kind": "average"}]


class HardAttention(nn.Module):
    def __init__(self, width, heads, kind):
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1)
        soft = F.softmax(scores / k.shape[-1] ** 0.5, dim=-1)
        if self.kind == "average":
            hard = (scores == scores.amax(dim=-1, keepdim=True)).to(v.dtype)
            hard = hard / hard.sum(dim=-1, keepdim=True)
        else:
            hard = F.one_hot(scores.argmax(dim=-1), scores.shape[-1]).to(v.dtype)
        weights = soft if self.training else hard
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Recogniser(nn.Module):  # whether a word is in the language: read at its first symbol
    def __init__(self, symbols, width, kind):
        super().__init__()
        self.embed, self.attention = nn.Embedding(symbols, width), HardAttention(width, 2, kind)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.accept = nn.Linear(width, 1)

    def forward(self, word):
        x = self.embed(word) + torch.linspace(0, 1, word.shape[1], device=word.device)[:, None]
        x = x + self.attention(x)
        return self.accept((x + self.ffn(x))[:, 0])


def module(kind="unique"):
    return Recogniser(8, 16, kind)


def inputs(batch, length):
    return (torch.randint(0, 8, (batch, length)),)
