"""Gated class-attention: masks of a task on the inputs and outputs of every layer of a class-attention block.

Cotogni, Yang, Cusano, Bagdanov, van de Weijer, "Exemplar-free Continual Learning of Vision Transformers via Gated
Class-Attention and Cascaded Feature Drift Compensation", 2022, arXiv:2211.12292.

    m = sigmoid(s * e_t)
    q = m * W_q (m * x_cls)      k = m * W_k (m * x)      v = W_v (m * x)
    x_cls = x_cls + m * W_o (m * Attn(q, k, v))
    x_cls = x_cls + m * MLP_m(m * LN(x_cls))              with a mask of its own on the hidden units

x: batch, 1 + patches, width, the class token first;  e_t: an embedding per task and masked width;  s grows from
1 / s_max to s_max in each epoch. Gradients of weights that earlier tasks use are masked, and those of e_t rescaled.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("feature", 5), ("attention-output", 1), ("residual-scale", 2)]


class GatedClassAttention(nn.Module):
    def __init__(self, width, heads, tasks, s_max=800.0):
        super().__init__()
        self.heads, self.s, self.s_max = heads, 1.0, s_max
        self.embs_0, self.embs_2 = nn.Embedding(tasks, width), nn.Embedding(tasks, 4 * width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def split(self, x):
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x, task):
        s = self.s if self.training else self.s_max
        gc0, gc2 = torch.sigmoid(s * self.embs_0(task)), torch.sigmoid(s * self.embs_2(task))
        cls_token = x[:, :1]
        h = self.norm1(x) * gc0
        q, k, v = self.split(self.q(h[:, :1]) * gc0), self.split(self.k(h) * gc0), self.split(self.v(h))
        attn = F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        out = (attn @ v).transpose(1, 2).flatten(2) * gc0
        cls_token = cls_token + self.proj(out) * gc0
        hidden = F.gelu(self.fc1(self.norm2(cls_token) * gc0)) * gc2
        return cls_token + self.fc2(hidden) * gc0

    def regulariser(self, task, previous, weight=0.05):
        """New tasks pay for the units that earlier ones, whose masks are given, left free."""
        masks = [torch.sigmoid(self.s * e(task)) for e in (self.embs_0, self.embs_2)]
        used = sum((m * (1 - p)).sum() for m, p in zip(masks, previous, strict=True))
        return weight * used / sum((1 - p).sum() for p in previous)

    @torch.no_grad()
    def correct_gradients(self, previous, clip=50.0):
        """Between backward and the optimiser's step."""
        m0, m2 = previous
        pairs = [(self.q, m0, m0), (self.k, m0, m0), (self.v, m0, m0), (self.proj, m0, m0)]
        for layer, into, out in (*pairs, (self.fc1, m0, m2), (self.fc2, m2, m0)):
            layer.weight.grad *= 1 - torch.outer(out, into)
            if layer.bias is not None:
                layer.bias.grad *= 1 - out
        for e in (self.embs_0.weight, self.embs_2.weight):
            e.grad *= self.s_max / self.s * (torch.cosh((self.s * e).clamp(-clip, clip)) + 1) / (torch.cosh(e) + 1)


def module():
    return GatedClassAttention(width=16, heads=2, tasks=3)


def inputs(batch, length):  # length: patches; all images of a batch are of one task
    return torch.randn(batch, 1 + length, 16), torch.tensor([1])
