"""GDKVM: a key-value memory of an echocardiogram's frames, written by the gated delta rule.

Wang, Sun, Guo, Wu and Qin, "GDKVM: Echocardiography Video Segmentation via Spatiotemporal Key-Value Memory with Gated
Delta Rule", 2025, ICCV, arXiv:2512.10252.

    alpha = exp(-exp(A) softplus(W_a x + dt)),  beta = sigmoid(W_b x)                     per frame and head
    S <- alpha * S
    S <- S + beta * k (v - k^T S)                                                         k: softmax over channels
    KPFF: g = sigmoid(Conv1x1(key + GAP(key)));  out = g * key + (1 - g) * pixel
    sensory: h <- f * h * (1 - u) + u * tanh(c);  f, u, c from convolutions of [pixel; h]

S: batch, heads, K, V;  k, v: batch, heads, K or V, pixels. The released code leaves the exponential out of alpha and
computes alpha and beta from S; this is the gated delta rule that the paper names.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("recurrence", 1), ("highway", 1), ("cell", 1)]


class Memory(nn.Module):
    def __init__(self, width, heads, k_dim):
        super().__init__()
        self.heads, self.k_dim, self.v_dim = heads, k_dim, width // heads
        self.query, self.key = nn.Conv2d(width, heads * k_dim, 1), nn.Conv2d(width, heads * k_dim, 1)
        self.value = nn.Conv2d(width, width, 3, padding=1)
        self.a_proj, self.b_proj = nn.Linear(width, heads, bias=False), nn.Linear(width, heads, bias=False)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))

    def empty(self, frame):
        return frame.new_zeros(frame.shape[0], self.heads, self.k_dim, self.v_dim)

    def forward(self, pixel, S):
        b, _, h, w = pixel.shape
        q, k, v = (f(pixel).view(b, self.heads, -1, h * w) for f in (self.query, self.key, self.value))
        q, k = torch.softmax(q, dim=2), torch.softmax(k, dim=2) * (h * w) ** -0.5
        x = pixel.mean((2, 3))
        alpha = torch.exp(-self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias))[..., None, None]
        beta = torch.sigmoid(self.b_proj(x))[..., None, None]

        S = alpha * S
        delta = beta * (v - torch.einsum("bnkp,bnkv->bnvp", k, S))
        S = S + torch.einsum("bnkp,bnvp->bnkv", k, delta)
        return torch.einsum("bnkp,bnkv->bnvp", q, S).reshape(b, -1, h, w), S


class KeyPixelFusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, key, pixel):
        g = torch.sigmoid(self.conv(key + F.adaptive_avg_pool2d(key, 1)))
        return key * g + pixel * (1 - g)


class Segmenter(nn.Module):
    def __init__(self, width=16, heads=2, k_dim=4):
        super().__init__()
        self.encode = nn.Conv2d(1, width, 4, stride=4)
        self.memory, self.fuse = Memory(width, heads, k_dim), KeyPixelFusion(width)
        self.sensory = nn.Conv2d(2 * width, 3 * width, 3, padding=1)
        self.head = nn.Conv2d(2 * width, 2, 1)

    def forward(self, frames, S=None):  # batch, time, 1, height, width
        h, masks = None, []
        for frame in frames.unbind(1):
            pixel = self.encode(frame)
            S = self.memory.empty(frame) if S is None else S
            h = torch.zeros_like(pixel) if h is None else h
            read, S = self.memory(pixel, S)
            fused = self.fuse(read, pixel)
            forget, update, new = self.sensory(torch.cat([fused, h], 1)).chunk(3, dim=1)
            forget, update = forget.sigmoid(), update.sigmoid()
            h = forget * h * (1 - update) + update * new.tanh()
            masks.append(self.head(torch.cat([fused, h], 1)))
        return torch.stack(masks, 1), S


def module():
    return Segmenter()


def inputs(batch, length):  # length: frames; the state of the frames before
    return torch.randn(batch, length, 1, 12, 12), torch.randn(batch, 2, 4, 8)
