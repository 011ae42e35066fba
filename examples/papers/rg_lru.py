"""RG-LRU, the real-gated linear recurrent unit of Griffin and Hawk, in its recurrent block.

De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024,
arXiv:2402.19427.

    r = sigmoid(W_a x + b_a),  i = sigmoid(W_x x + b_x)                  W_a, W_x block-diagonal, a block per head
    log a_t = -8 * r_t * softplus(Lambda)
    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)
    block: W_o(gelu(W_y u) * RG-LRU(Conv1D_4(W_x u)))   MLP: W_d(gelu(W_g u) * W_u u)

x, r, i, a, h: batch, time, width. Where a document starts (position 0) the state is forgotten and sqrt(1 - a^2) is 1.
The gradient of that square root is clipped at 1000.
"""

import torch
import torch.nn.functional as F
from torch import nn

GATES = [("recurrence", 1), ("glu", 2)]


class BoundedSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / torch.sqrt((4.0 * x).clamp(min=1e-6))


class BlockDiagonal(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, block = heads, width // heads
        self.w = nn.Parameter(torch.randn(heads, block, block) * block**-0.5)
        self.b = nn.Parameter(torch.zeros(heads, block))

    def forward(self, x):
        y = torch.einsum("bthi,hij->bthj", x.unflatten(-1, (self.heads, -1)), self.w) + self.b
        return y.flatten(-2)


class RGLRU(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.a_gate, self.x_gate = BlockDiagonal(width, heads), BlockDiagonal(width, heads)
        decay = torch.empty(width).uniform_(0.9, 0.999)  # a at r = 1
        self.a_param = nn.Parameter(torch.log(torch.expm1(-torch.log(decay) / 8.0)))

    def forward(self, x, positions):
        reset = positions[..., None] == 0
        gate_x, gate_a = torch.sigmoid(self.x_gate(x)), torch.sigmoid(self.a_gate(x))
        log_a = -8.0 * gate_a * F.softplus(self.a_param)
        a = torch.exp(log_a) * ~reset
        multiplier = torch.where(reset, 1.0, BoundedSqrt.apply(1 - torch.exp(2 * log_a)))
        x = x * gate_x * multiplier

        h, y = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            y[:, t] = h
        return y


class ResidualBlock(nn.Module):
    def __init__(self, width, rnn, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.linear_y, self.linear_x, self.linear_out = (
            nn.Linear(width, rnn),
            nn.Linear(width, rnn),
            nn.Linear(rnn, width),
        )
        self.conv = nn.Conv1d(rnn, rnn, 4, groups=rnn, padding=3)
        self.rglru = RGLRU(rnn, heads)
        self.gate, self.up, self.down = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x, positions):
        u = self.norm1(x)
        y = F.gelu(self.linear_y(u), approximate="tanh")
        z = self.conv(self.linear_x(u).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        x = x + self.linear_out(self.rglru(z, positions) * y)
        u = self.norm2(x)
        return x + self.down(F.gelu(self.gate(u), approximate="tanh") * self.up(u))


def module():
    return ResidualBlock(width=16, rnn=24, heads=4)


def inputs(batch, length):  # two documents in a row
    positions = torch.arange(length) % (length // 2 + 1)
    return torch.randn(batch, length, 16), positions.expand(batch, -1)
