"""Sparse modular activation (SeqBoat): a state space layer on every token, gated attention on the active ones.

Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", 2023, arXiv:2306.11197.

    m = SiLU(EMA(x))
    p = softmax(U m / tau),   a = 1 where p_1 > p_0 else 0
    h = W (o * r) * p_1 * a,   o = attention among active tokens,   r = SiLU(W_r m)
    y = SiLU(W_x m + h + x)

x, m, y: batch, tokens, width;  p: batch, tokens, 2;  a: batch, tokens. The paper compresses the active tokens into a
shorter sequence and scatters the results back; here all are computed and masked, with the window of the local
attention counted among active tokens. Attention is relu^2 of the scores; q and k are scaled and shifted from one z.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 2), ("hard", 2), ("attention-output", 2)]
SKIPS = 2


class EMA(nn.Module):
    """Damped moving average with several decays per feature."""

    def __init__(self, width, order):
        super().__init__()
        self.alpha, self.delta = nn.Parameter(torch.randn(width, order)), nn.Parameter(torch.randn(width, order))
        self.beta, self.eta = nn.Parameter(torch.randn(width, order)), nn.Parameter(torch.randn(width, order))
        self.omega = nn.Parameter(torch.ones(width))

    def forward(self, x):
        alpha, decay = torch.sigmoid(self.alpha), 1 - torch.sigmoid(self.alpha) * torch.sigmoid(self.delta)
        h, out = x.new_zeros(x.shape[0], *alpha.shape), []
        for x_t in x.unbind(1):
            h = decay * h + alpha * self.beta * x_t.unsqueeze(-1)
            out.append((h * self.eta).sum(-1))
        return torch.stack(out, dim=1) + self.omega * x


class SeqBoatLayer(nn.Module):
    def __init__(self, width, attend=8, value=32, order=2, window=4):
        super().__init__()
        self.norm, self.ema = nn.LayerNorm(width), EMA(width, order)
        self.decide, self.hx = nn.Linear(width, 2), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.tensor(0.5 * math.log(width)))
        self.zrv = nn.Linear(width, attend + 2 * value)
        self.gamma, self.beta = nn.Parameter(torch.ones(2, attend)), nn.Parameter(torch.zeros(2, attend))
        self.out = nn.Linear(value, width)
        self.split, self.window = (attend, value, value), window

    def gau(self, m, active):
        z, r, v = F.silu(self.zrv(m)).split(self.split, dim=-1)
        q, k = (z.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        place = active.cumsum(1)
        near = (place.unsqueeze(2) - place.unsqueeze(1)).abs() < self.window
        scores = q @ k.transpose(1, 2) / self.window
        o = F.relu(scores).square().masked_fill(~(near & active.unsqueeze(1)), 0.0) @ v
        return self.out(o * r)

    def forward(self, x):
        m = F.silu(self.ema(self.norm(x)))
        p = torch.softmax(self.decide(m) / self.temperature.exp(), dim=-1)
        active = p.argmax(-1) == 1
        h = self.gau(m, active) * p[..., 1:] * active.unsqueeze(-1)
        return F.silu(self.hx(m) + h + x)


def module():
    return nn.Sequential(nn.Embedding(20, 16), SeqBoatLayer(16), SeqBoatLayer(16), nn.Linear(16, 20))


def inputs(batch, length):
    return (torch.randint(20, (batch, length)),)
