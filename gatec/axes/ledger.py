"""What the operators of a forward were called with and made, and which of their results are there at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

from gatec.axes.walk import Dims, Walk
from gatec.clocks import Alive


class Like(NamedTuple):
    """A tensor's form, and its axes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    dims: Dims


@dataclass(frozen=True)
class Called:
    """An operator that computes, its arguments with forms in place of tensors, and the forms of its results."""

    func: Any
    leaves: tuple[Any, ...]
    spec: TreeSpec
    made: tuple[Like, ...]


@dataclass
class Ledger:
    """`calls` in their order; `moments` are after each operator the results (by number) that are there."""

    calls: list[Called] = field(default_factory=list)
    results: list[Like] = field(default_factory=list)
    moments: list[tuple[int, ...]] = field(default_factory=list)
    alive: Alive = field(default_factory=Alive)

    def __call__(self, walk: Walk, func: Any, given: Any, made: Sequence[Tensor]) -> None:
        leaves, spec = tree_flatten(given)
        forms = tuple(_like(walk, v) if isinstance(v, Tensor) else v for v in leaves)
        results = tuple(_like(walk, v) for v in made)
        if not func.is_view:
            self.calls.append(Called(func, forms, spec, results))
        first = len(self.results)
        self.results += results
        there = self.alive.note(
            (v for v in leaves if isinstance(v, Tensor)), zip(made, range(first, len(self.results)), strict=True)
        )
        self.moments.append(tuple(there))


def _like(walk: Walk, value: Tensor) -> Like:
    return Like(tuple(value.shape), tuple(value.stride()), value.dtype, value.device, list(walk.of(value)))
