"""ViG: gated linear attention over an image's patches in both directions, blended with a local convolution.

Liao, Wang, Zhu, Zhang, Liu and Wang, "ViG: Linear-Complexity Visual Sequence Learning with Gated Linear Attention",
2024, arXiv:2405.18425.

    u = SiLU(DWConv(x));  gk_fw, gk_bw = logsigmoid(W2 W1 u) / 16
    o = (GLA(q, k, v, gk_fw) + flip(GLA(flip(q), flip(k), flip(v), flip(gk_bw)))) / 2
    g = sigmoid(W_g u)
    y = W_o(g * RMSNorm(o) + (1 - g) * RMSNorm(DWConv(v)))

GLA: S_t = diag(exp(gk_t)) S_{t-1} + k_t^T v_t, o_t = q_t S_t; here in parallel, by the decays between any two patches.
x, u, v, o, g: batch, patches, width;  q, k, gk: batch, patches, K. One head.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 2), ("highway", 1)]


def gla(q, k, v, gk):
    total = torch.cumsum(gk, dim=1)
    between = total.unsqueeze(2) - total.unsqueeze(1)  # batch, to, from, K
    later = torch.ones(between.shape[1:3], dtype=torch.bool, device=q.device).triu(1)
    decay = torch.exp(between.masked_fill(later[..., None], float("-inf")))
    scores = torch.einsum("bik,bjk,bijk->bij", q, k, decay)
    return scores @ v


class BidirectionalGLA(nn.Module):
    def __init__(self, dim, k_dim=8, low_rank=4):
        super().__init__()
        self.k_dim = k_dim
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.qkv = nn.Linear(dim, 2 * k_dim + dim, bias=False)
        self.gk = nn.Sequential(nn.Linear(dim, low_rank, bias=False), nn.Linear(low_rank, 2 * k_dim))
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.global_norm, self.local_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.gate, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)

    @staticmethod
    def over_image(conv, x, side):
        return conv(x.transpose(1, 2).reshape(x.shape[0], -1, *side)).flatten(2).transpose(1, 2)

    def forward(self, x, side):
        u = F.silu(self.over_image(self.dwconv, x, side))
        q, k, v = self.qkv(u).split([self.k_dim, self.k_dim, x.shape[-1]], dim=-1)
        q = q * self.k_dim**-0.5
        gk_fw, gk_bw = (F.logsigmoid(self.gk(u)) / 16).chunk(2, dim=-1)
        forth = gla(q, k, v, gk_fw)
        back = gla(q.flip(1), k.flip(1), v.flip(1), gk_bw.flip(1)).flip(1)
        o = self.global_norm((forth + back) / 2)
        local = self.local_norm(self.over_image(self.local, v, side))
        g = torch.sigmoid(self.gate(u))
        return self.out(o * g + local * (1 - g))


class Classifier(nn.Module):
    def __init__(self, dim=16, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = BidirectionalGLA(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, image):
        x = self.patches(image)
        side = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.mixer(self.norm1(x), side)
        x = x + self.ffn(self.norm2(x))
        return self.head(self.norm(x).mean(1))


def module():
    return Classifier()


def inputs(batch, length):  # length: patches along a side
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
