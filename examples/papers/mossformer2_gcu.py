"""MossFormer2: a gated FSMN, joint attention of two streams that gate each other, and a gated mask.

Zhao et al., "MossFormer2: Combining Transformer and RNN-Free Recurrent Network for Enhanced Time-Domain Monaural Speech
Separation", ICASSP 2024, arXiv:2312.11825.

    GCU:  u, v = FFConvM(x), FFConvM(x);   y = v * FSMN(u) + x
    FSMN(u) = u + dwconv_dilated(W2 relu(W1 u))
    joint attention:  out = (A u * v) * sigmoid(A v * u),   A = relu(Q K^T / g)^2 inside groups + Q (K^T .) / T
    mask = relu(conv(tanh(conv z) * sigmoid(conv z)))

x, y, u, v: batch, frames T, width;  Q, K: a common projection, scaled and shifted;  g: frames of a group.
FFConvM(x) = h + dwconv(h), h = silu(W LN(x)).
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("token-mixing", 1), ("attention-output", 1), ("glu", 2)]  # the mask, and the mixture under it


class FFConvM(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.mdl = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.SiLU())
        self.dwconv = nn.Conv1d(out, out, 5, padding=2, groups=out, bias=False)

    def forward(self, x):
        h = self.mdl(x)
        return h + self.dwconv(h.transpose(1, 2)).transpose(1, 2)


class FSMN(nn.Module):
    def __init__(self, width, hidden, dilation=2):
        super().__init__()
        self.linear, self.project = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        self.memory = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)

    def forward(self, u):
        p = self.project(F.relu(self.linear(u)))
        return u + self.memory(p.transpose(1, 2)).transpose(1, 2)


class GCU(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_u, self.to_v, self.fsmn = FFConvM(width, width), FFConvM(width, width), FSMN(width, 2 * width)

    def forward(self, x):
        x_u, x_v = self.to_u(x), self.to_v(x)
        return x_v * self.fsmn(x_u) + x


class JointAttention(nn.Module):
    def __init__(self, width, hidden, qk, group=4):
        super().__init__()
        self.group = group
        self.to_hidden, self.to_qk, self.to_out = FFConvM(width, 2 * hidden), FFConvM(width, qk), FFConvM(hidden, width)
        self.gamma, self.beta = nn.Parameter(torch.rand(4, qk)), nn.Parameter(torch.zeros(4, qk))

    def attend(self, v, quad_q, quad_k, lin_q, lin_k):
        weights = F.relu(quad_q @ quad_k.transpose(-1, -2) / self.group).square()
        whole = torch.einsum("bgnd,bgne->bde", lin_k, v) / (v.shape[1] * v.shape[2])
        return (weights @ v + torch.einsum("bgnd,bde->bgne", lin_q, whole)).flatten(1, 2)

    def forward(self, x):
        n = x.shape[1]
        padded = F.pad(x, (0, 0, 0, -n % self.group))
        v, u = self.to_hidden(padded).chunk(2, dim=-1)
        qk = self.to_qk(padded).unsqueeze(-2) * self.gamma + self.beta
        grouped = [t.unflatten(1, (-1, self.group)) for t in (v, u, *qk.unbind(-2))]
        att_v, att_u = self.attend(grouped[0], *grouped[2:]), self.attend(grouped[1], *grouped[2:])
        out = (att_u * v) * torch.sigmoid(att_v * u)
        return x + self.to_out(out[:, :n])


class Separator(nn.Module):
    """One mask per speaker on the encoded mixture."""

    def __init__(self, width=16, speakers=2):
        super().__init__()
        self.speakers = speakers
        self.encoder = nn.Conv1d(1, width, 4, stride=2, padding=1)
        self.attention, self.gcu = JointAttention(width, 2 * width, 8), GCU(width)
        self.conv, self.tanh, self.sigmoid = (nn.Conv1d(width, n, 1) for n in (speakers * width, width, width))
        self.mask, self.decoder = nn.Conv1d(width, width, 1), nn.ConvTranspose1d(width, 1, 4, stride=2, padding=1)

    def forward(self, mixture):  # batch, samples
        encoded = F.relu(self.encoder(mixture.unsqueeze(1)))
        z = self.conv(self.gcu(self.attention(encoded.transpose(1, 2))).transpose(1, 2))
        z = z.view(z.shape[0] * self.speakers, -1, z.shape[-1])
        masks = F.relu(self.mask(torch.tanh(self.tanh(z)) * torch.sigmoid(self.sigmoid(z))))
        separated = masks.view(-1, self.speakers, *encoded.shape[1:]) * encoded.unsqueeze(1)
        return self.decoder(separated.flatten(0, 1)).view(encoded.shape[0], self.speakers, -1)


def module():
    return Separator()


def inputs(batch, length):  # two samples per frame
    return (torch.randn(batch, 2 * length),)
