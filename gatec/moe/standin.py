"""What stands in for the experts that a token does not go to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StandIn(nn.Module):
    """For each expert a constant, and a direction by a linear score of the token, added where the expert is not chosen.

    forward(x[tokens, width], routed) gives [tokens, out]: nothing where every expert is chosen, and nothing before
    `gatec.calibrate` has fitted it. An expert costs three rows of weights, whatever its size.
    """

    def __init__(self, width: int, out: int, experts: int, *, fixed: bool, **like: Any) -> None:
        super().__init__()
        self.experts, self.fixed = experts, fixed
        self.score = nn.utils.skip_init(nn.Linear, width, experts, bias=False, **like)
        self.table = nn.Parameter(torch.zeros(2 * experts, out, **like))
        nn.init.zeros_(self.score.weight)  # not its rows of the table as well: nothing would learn
        self.table.data[experts:] = out**-0.5

    def forward(self, x: Tensor, routed: Any) -> Tensor:
        found: Tensor = self.features(x, skipped(x, routed, self.experts, self.fixed)) @ self.table
        return found

    def features(self, x: Tensor, skipped: Tensor) -> Tensor:
        return torch.cat([skipped, skipped * self.score(x)], -1)

    def extra_repr(self) -> str:
        return f"experts={self.experts}"


def skipped(x: Tensor, routed: Any, experts: int, fixed: bool) -> Tensor:
    """1 for each expert [tokens, experts] that a router did not choose, else 0."""
    if fixed:
        return x.new_ones(x.shape[0], experts).scatter(1, routed[0], 0.0)
    others: Tensor = routed == 0
    return others.to(x.dtype)


@torch.no_grad()
def direction(x: Tensor, out: Tensor, rounds: int = 8) -> Tensor:
    """The direction of x[tokens, width] along which out[tokens, width] moves most, by power iteration on their covariance."""
    x, out = x - x.mean(0), out - out.mean(0)
    found = out.square().mean(0).sqrt()
    for _ in range(rounds):
        found = F.normalize(out.t() @ (x @ (x.t() @ (out @ found))), dim=0)
    return F.normalize(x.t() @ (out @ found), dim=0)


@torch.no_grad()
def least_squares(pairs: Iterable[tuple[Tensor, Tensor]], ridge: float = 1e-3) -> Tensor:
    """The table for which features @ table is nearest to what is wanted, over chunks of (features, wanted).

    `ridge` keeps columns apart that are alike: the skipped experts of a token always add up to the same number.
    """
    square: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for features, wanted in pairs:
        a = features.double()
        square = square + a.t() @ a
        cross = cross + a.t() @ wanted.double()
    assert isinstance(square, Tensor) and isinstance(cross, Tensor)
    size = square.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    found: Tensor = torch.linalg.solve(square + torch.diag(ridge * size), cross)
    return found
