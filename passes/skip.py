"""Block gate: one trainable on/off switch per block of a chain of blocks.

    before    y = block(x)
    after     y = block(x) if open else x,    open = 1[w >= 1/2]

Born neutral, to the bit: w = 1, every block on. The gradient passes straight through the step, along block(x) - x, so a
penalty on w closes blocks while the loss keeps the useful ones open; `gatec.compact` then removes the closed ones, to the bit.
FoldGPT, Liu et al. 2024, https://arxiv.org/abs/2407.00928; the step is that of Kim et al. 2019,
https://arxiv.org/abs/1904.10921
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, equation, places


@equation
def skip(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    # the choice is one of the two to the bit; the rest is zero, with the gradient of weight * (y - x)
    zero = weight - weight.detach()
    return torch.where(weight >= 0.5, y, x) + zero * y.detach() - zero * x.detach()


def after(site, here, x, block):
    return skip(x, here, site.add("gate", lambda: nn.Parameter(torch.ones((), **site.like(block))), near=block))


def closes(site) -> Tensor:
    """Whether the gate of the block is closed."""
    return site.added_value("gate").detach() < 0.5


def merge(site) -> None:
    if closes(site):
        site.refuse("it is closed: its block is skipped, which no weight of it can say")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x, scale=None):
        return x + self.mlp(x) * (1 if scale is None else scale)


class Tuples(Block):
    def forward(self, hidden, flag=True):
        if hidden.numel() and hidden.sum().item() > 1e9:  # not to be captured
            flag = False
        return super().forward(hidden), {"flag": flag}


class Loop(nn.Module):
    """A loop over blocks that return tuples, through a forward that cannot be captured either."""

    def __init__(self, block: type[nn.Module] = Tuples) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([block(), block()]), nn.Linear(8, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, flag=bool((x == x).all()))[0]
        return self.head(x)


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.block,), after=after, equation=skip, merge=merge, closes=closes, of="blocks",
    cases=(
        Case("in a row", lambda: nn.Sequential(Block(), Block(), nn.Linear(8, 8)), X, put=2),
        Case("a loop that cannot be captured", Loop, X, put=2),
        Case("stacks of blocks", lambda: nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())), X,
             put=4),
    ),
)  # fmt: skip
