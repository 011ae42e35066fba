"""Gates as people write them, with views, sums and einsum around them: each with its operands' sizes."""

import torch
from torch import nn
from torch.nn import functional as F


class Jump(torch.autograd.Function):
    """A step whose threshold learns by a rectangle around it."""

    @staticmethod
    def forward(ctx, x, threshold):
        ctx.save_for_backward(x, threshold)
        return x * (x > threshold)

    @staticmethod
    def backward(ctx, grad):
        x, threshold = ctx.saved_tensors
        near = ((x - threshold).abs() < 0.25).to(x.dtype)
        return grad * (x > threshold), (-threshold * near * grad).sum_to_size(threshold.shape)


class Uneven(Jump):
    """A backward that looks at the size of its threshold."""

    @staticmethod
    def backward(ctx, grad):
        gone, found = Jump.backward(ctx, grad)
        return gone, found / found.numel()


class Gated(nn.Module):
    """One expression of two projections of x, of a number per position and per feature."""

    def __init__(self, expression):
        super().__init__()
        self.a, self.b, self.few = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale, self.mask = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(3))
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.atoms = nn.Parameter(torch.randn(3, 8, 8))
        self.conv, self.deep = nn.Conv1d(8, 16, 1), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.expression = expression

    def forward(self, x):
        return self.expression(self, x)


def halves(m, x):
    u, v = m.conv(x.mT).chunk(2, 1)
    return u * m.deep(v)


def stacked(m, x):
    return torch.stack([expert(x) for expert in m.experts], dim=2)


GATES = {
    "per channel, unsqueezed": lambda m, x: torch.tanh(x) * torch.sigmoid(m.a(x.mean(1))).unsqueeze(1),
    "per channel, expanded": lambda m, x: x * torch.sigmoid(m.a(x.mean(1)))[:, None].expand_as(x),
    "per channel, transposed": lambda m, x: torch.sigmoid(m.a(x.mean(1)).unsqueeze(-1)).transpose(1, 2) * x,
    "per position": lambda m, x: x * torch.sigmoid(m.a(x).sum(-1))[..., None],
    "a view of one": lambda m, x: x * torch.sigmoid(m.scale).view(1, 1, 8),
    "a part": lambda m, x: x * torch.sigmoid(m.scale * torch.cat([x, m.a(x)], 1))[:, : x.shape[1]],
    "with its residual": lambda m, x: x + m.a(x).cumsum(1) * torch.sigmoid(m.scale),
    "one product": halves,
    "masked": lambda m, x: m.a(x) * torch.sigmoid(m.b(x).masked_fill(x.isnan(), -1.0)),
    "einsum": lambda m, x: torch.einsum("bc,btc->btc", torch.sigmoid(m.a(x.mean(1))), x),
    "a sum of experts": lambda m, x: (F.softmax(m.few(x), -1).unsqueeze(-1) * stacked(m, x)).sum(2),
    "einsum of experts": lambda m, x: torch.einsum("btk,btkd->btd", F.softmax(m.few(x), -1), stacked(m, x)),
    "merged weights": lambda m, x: x @ torch.einsum("s,sij->ij", torch.softmax(m.mask, 0), m.atoms),
    "a backward of its own": lambda m, x: 2 * Jump.apply(m.conv(x.mT).mT[..., :8], torch.sigmoid(m.scale)),
    "gates of experts": lambda m, x: (torch.sigmoid(m.few(x))[..., None] * stacked(m, x)).sum(dim=2, keepdim=True),
}  # fmt: skip
