"""DeFTAN-II: gated convolutions make the queries and keys of an efficient attention, along frequency and along time.

Lee and Choi, "DeFTAN-II: Efficient Multichannel Speech Enhancement with Subgroup Processing", 2023, arXiv:2308.15777.

    [a, b] = Conv1d_3(x),   qk = a * sigmoid(b),   q, k = heads of qk,   v = Conv1d_3(x)
    CEA(x) = W (softmax_channels(q) (softmax_length(k)^T v))
    DPFN(x) = W_o [PW_1 x, DWConv_dilated(PW_2 x)]

x: batch, channels, length. The feed-forward's two paths are concatenated, as in the released code: no product there.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("glu", 2)]


class CEA(nn.Module):
    """Convolutional efficient attention: linear in the length, softmax on queries and keys apart."""

    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Sequential(nn.Conv1d(dim, 4 * dim, 3, padding=1, bias=False), nn.GLU(dim=1))
        self.to_v = nn.Sequential(nn.Conv1d(dim, dim, 3, padding=1, bias=False), nn.PReLU(dim))
        self.to_out = nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        b, c, n = x.shape
        q, k = self.to_qk(x).chunk(2, dim=1)
        q, k, v = (t.reshape(b, self.heads, c // self.heads, n) for t in (q, k, self.to_v(x)))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        out = torch.einsum("bhdn,bhde->bhen", q.softmax(dim=-2), context)
        return self.to_out(out.reshape(b, c, n))


class Transformer(nn.Module):
    def __init__(self, dim, dilation):
        super().__init__()
        self.cea, self.norm1, self.norm2 = CEA(dim), nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.pw1, self.pw2, self.out = nn.Conv1d(dim, dim, 1), nn.Conv1d(dim, dim, 1), nn.Conv1d(2 * dim, dim, 1)
        self.dw = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation, groups=dim)

    def forward(self, x):
        x = x + self.cea(self.norm1(x))
        h = self.norm2(x)
        return x + self.out(torch.cat([F.gelu(self.pw1(h)), F.gelu(self.dw(self.pw2(h)))], dim=1))


class Enhancer(nn.Module):
    def __init__(self, microphones=2, dim=16):
        super().__init__()
        self.encode, self.decode = nn.Conv2d(2 * microphones, dim, 3, padding=1), nn.Conv2d(dim, 2, 3, padding=1)
        self.over_frequency, self.over_time = Transformer(dim, dilation=1), Transformer(dim, dilation=2)

    def forward(self, spectra):  # batch, real and imaginary of each microphone, frequencies, frames
        x = self.encode(spectra)
        b, c, f, t = x.shape
        x = self.over_frequency(x.permute(0, 3, 1, 2).reshape(b * t, c, f)).reshape(b, t, c, f)
        x = self.over_time(x.permute(0, 3, 2, 1).reshape(b * f, c, t)).reshape(b, f, c, t)
        return self.decode(x.transpose(1, 2))


def module():
    return Enhancer()


def inputs(batch, length):  # length: frames
    return (torch.randn(batch, 4, 9, length),)
