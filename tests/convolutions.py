"""Gates over depthwise convolutions, as people write them: models, each with the shape of its input."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 6


class Convolved(nn.Module):
    """A convolution, two layers, and a parameter; `body` says what is computed of them."""

    def __init__(self, body, conv):
        super().__init__()
        self.conv, self.body = conv, body
        self.gate, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x):
        return self.body(self, x)


def causal(m, x):
    return F.silu(m.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)) * m.gate(x)


def gated_twice(m, x):
    """A gate on what is convolved, and one on the result."""
    u = (torch.sigmoid(m.gate(x)) * m.value(x)).transpose(1, 2)
    return m.conv(u)[:, :, : u.shape[-1]].transpose(1, 2) * torch.tanh(x * m.scale)


def activated(m, x):
    """An activation on what is convolved, whose length is asked for."""
    u = F.silu(m.value(x)).transpose(1, 2)
    return m.conv(u)[:, :, : u.shape[-1]].transpose(1, 2) * torch.sigmoid(x)


def padded(m, x):
    u = F.pad(x.mT, (3, 0))
    return torch.sigmoid(F.conv1d(u, m.conv.weight, m.conv.bias, groups=WIDTH)) * x.mT


def cut_from_behind(m, x):
    u = x.transpose(1, 2)
    return F.gelu(m.conv(u)[..., :-3]) * (u + 1)


def image(m, x):
    return torch.sigmoid(m.conv(x)) * x


def image_channels_last(m, x):
    return F.gelu(m.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) * m.value(x)


SEQUENCE, IMAGE, ROWS = (2, 9, WIDTH), (2, WIDTH, 5, 7), (2, 5, 7, WIDTH)
CASES = {
    "causal": (causal, lambda: nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3), SEQUENCE),
    "gated twice": (gated_twice, lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=4, dilation=2, bias=False), SEQUENCE),
    "activated": (activated, lambda: nn.Conv1d(WIDTH, WIDTH, 2, groups=WIDTH, padding=1), SEQUENCE),
    "padded": (padded, lambda: nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH), SEQUENCE),
    "cut from behind": (cut_from_behind, lambda: nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3), SEQUENCE),
    "image": (image, lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH, padding=1), IMAGE),
    "channels last": (image_channels_last, lambda: nn.Conv2d(WIDTH, WIDTH, (1, 5), groups=WIDTH, padding=(0, 2)), ROWS),
}  # fmt: skip


def model_of(name):
    body, conv, shape = CASES[name]
    torch.manual_seed(0)
    return Convolved(body, conv()), torch.randn(shape)
