"""Products of the decays between any two steps of a chunk.

They are built by doubling: spans of 1, 2, 4, ... steps, each with the products from its start and to its end. Nothing is
divided, and no logarithm is taken, so a gate that closes (a decay of 0) is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Decays:
    """Of `a`, [..., steps, D] with a power of two of steps; D is the keys' width, or 1 where all keys share a decay."""

    def __init__(self, a: Tensor) -> None:
        self.shared = a.shape[-1] == 1
        start, end = a.unsqueeze(-2), torch.ones_like(a).unsqueeze(-2)
        self.spans = []
        while start.shape[-3] > 1:
            self.spans.append((start, end))
            (first, second), (before, behind) = halves(start), halves(end)
            whole, rest = first[..., -1:, :], second[..., -1:, :]
            start = torch.cat([first, second * whole], -2)
            end = torch.cat([before * rest, behind], -2)
        self.from_start, self.to_end = start.squeeze(-3), end.squeeze(-3)
        if self.shared:
            ones = torch.ones_like(a)
            self.between = self._paired(ones, ones)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """[t, s]: the product of x[t] and y[s] with all that decays between, for s <= t; else 0."""
        return (x @ y.mT) * self.between if self.shared else self._paired(x, y)

    def _paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Two halves meet at the border between them; each half is paired in the same way."""
        found = (x * y).sum(-1)[..., None, None]
        for start, end in self.spans:
            width = start.shape[-2]
            late = halves(x.unflatten(-2, (-1, width)))[1] * halves(start)[1]
            early = halves(y.unflatten(-2, (-1, width)))[0] * halves(end)[0]
            low = late * early.mT if x.shape[-1] == 1 else late @ early.mT
            first, second = halves(found)
            upper = torch.cat([first, torch.zeros_like(low)], -1)
            found = torch.cat([upper, torch.cat([low, second], -1)], -2)
        return found.squeeze(-3)


class NoDecays:
    """States that keep everything."""

    from_start = to_end = None

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT).tril()


def halves(spans: Tensor) -> tuple[Tensor, Tensor]:
    """Every second span, and those between: [..., spans, steps, D]."""
    first, second = spans.unflatten(-3, (-1, 2)).unbind(-3)
    return first, second


def scaled(x: Tensor, by: Tensor | None) -> Tensor:
    return x if by is None else x * by
