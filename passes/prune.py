"""Pruning gate: one trainable on/off switch per hidden unit of an MLP.

    before    y = down(hidden)
    after     y = down(hidden * b(w)),    b(w) = 1[w >= 1/2]

Born neutral, to the bit: w = 1, every unit on. The gradient passes straight through the step, so a penalty on w closes
units while the loss keeps the useful ones open; `gatec.compact` then removes the closed ones exactly.
Kim et al. 2019, "Plug-in, trainable gate for streamlining arbitrary neural networks", https://arxiv.org/abs/1904.10921
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, equation, places


@equation
def prune(hidden: Tensor, weight: Tensor) -> Tensor:
    # forward exactly 0 or 1, gradient of the identity: w - w.detach() is 0 with gradient 1
    return hidden * ((weight >= 0.5).to(weight.dtype) + (weight - weight.detach()))


def after(site, here, up):
    width = up.out_features
    return prune(here, site.add("gate", lambda: nn.Parameter(torch.ones(width, **site.like(up))), near=up))


def closes(site) -> Tensor:
    """True for every hidden unit whose gate is closed."""
    return site.added_value("gate").detach() < 0.5


def merge(site) -> None:
    site.scale_inputs("down", ~closes(site))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.dense_hidden, places.gated_hidden), after=after, equation=prune, closes=closes, merge=merge,
    cases=(
        Case("dense", mlp, X),
        Case("gated", GatedMLP, X),
        Case("two in a row", lambda: nn.Sequential(mlp(), mlp()), X, put=2),
    ),
)  # fmt: skip
