"""Operators of a forward run alone, with tensors of their own at several widths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from gatec.axes import Called, Like
from gatec.clocks import Timer
from gatec.pruning.extents import Extent, Widths, extent, product, value

LEVELS = {1: (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0), 2: (1 / 8, 1 / 2, 1.0), 3: (1 / 4, 1.0), 4: (1 / 4, 1.0)}
TRIES = 32  # of numbers of one operator's that may stand for a width
Times = NDArray[np.float64] | float | None


@dataclass
class Operator:
    """A call whose tensors have gated widths: `factors` are the widths, at `levels` each."""

    call: Called
    names: Mapping[Any, str]
    sizes: Widths
    factors: tuple[Any, ...] = ()
    levels: tuple[tuple[int, ...], ...] = ()
    extents: dict[int, list[Extent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for like in self.likes:
            self.extents[id(like)] = [extent(dim, self.names) for dim in like.dims]
        found = (f for like in self.likes for one in self.extents[id(like)] for f in one.factors)
        self.factors = tuple(dict.fromkeys(found))
        shares = LEVELS.get(len(self.factors), (1.0,))
        self.levels = tuple(tuple(sorted({max(1, round(s * self.full(f))) for s in shares})) for f in self.factors)

    @property
    def likes(self) -> list[Like]:
        return [v for v in (*self.call.leaves, *self.call.made) if isinstance(v, Like)]

    @property
    def key(self) -> Any:
        """Equal for operators that take as long."""
        number = {factor: n for n, factor in enumerate(self.factors)}
        axes = [(e.number, *(number[f] for f in e.factors)) for like in self.likes for e in self.extents[id(like)]]
        forms = [v[:4] if isinstance(v, Like) else repr(v) for v in (*self.call.leaves, *self.call.made)]
        return self.call.func, tuple(forms), tuple(axes), self.levels

    @property
    def made(self) -> Extent:
        """How many numbers it makes."""
        return product(e for like in self.call.made[:1] for e in self.extents[id(like)])

    def full(self, factor: Any) -> int:
        return int(value(factor, self.sizes))

    def taken(self, timer: Timer) -> Times:
        """Seconds at all combinations of levels; those at full widths alone where it does not run at all of them; None
        where it does not run with other tensors."""
        whole = self._seconds([self.full(f) for f in self.factors], timer)
        if whole is None or len(self.factors) not in LEVELS:
            return whole
        found = np.empty([len(levels) for levels in self.levels])
        for at in np.ndindex(*found.shape):
            sizes = [levels[n] for levels, n in zip(self.levels, at, strict=True)]
            one = whole if at == tuple(n - 1 for n in found.shape) else self._seconds(sizes, timer)
            if one is None:
                return whole
            found[at] = one
        return found

    def _seconds(self, at: Sequence[int], timer: Timer) -> float | None:
        widths = dict(zip(self.factors, at, strict=True))
        wanted = [self._shape(like, widths) for like in self.call.made]
        for args, kwargs in itertools.islice(self._arguments(widths), TRIES):
            try:
                out = self.call.func(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                continue
            if [tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor)] == wanted:
                return timer(self.call.func, *args, **kwargs)
        return None

    def _arguments(self, widths: Mapping[Any, int]) -> Iterator[tuple[Any, Any]]:
        """Tensors of these widths, and the numbers beside them, each as it was or as long as a width is now."""
        leaves = [self._tensor(v, widths) if isinstance(v, Like) else v for v in self.call.leaves]
        options = [self._numbers(v, widths) if type(v) is int else [v] for v in leaves]
        for chosen in itertools.product(
            *([None] if isinstance(t, Tensor) else own for t, own in zip(leaves, options, strict=True))
        ):
            yield tree_unflatten(
                [t if isinstance(t, Tensor) else c for t, c in zip(leaves, chosen, strict=True)], self.call.spec
            )

    def _numbers(self, number: int, widths: Mapping[Any, int]) -> list[int]:
        found = dict.fromkeys([number])
        for before, now in self._changed(widths):
            if before == number:
                found.setdefault(now)
        return list(found)

    def _changed(self, widths: Mapping[Any, int]) -> Iterator[tuple[int, int]]:
        yield from ((self.full(f), widths[f]) for f in self.factors)
        for like in self.likes:
            yield from zip(like.shape, self._shape(like, widths), strict=True)

    def _shape(self, like: Like, widths: Mapping[Any, int]) -> tuple[int, ...]:
        found = []
        for one in self.extents[id(like)]:
            length = one.number
            for factor in one.factors:
                length *= widths[factor]
            found.append(length)
        return tuple(found)

    def _tensor(self, like: Like, widths: Mapping[Any, int]) -> Tensor:
        """Numbers laid out as the operator's were."""
        shape = self._shape(like, widths)
        order = sorted(range(len(shape)), key=lambda n: -like.stride[n])
        sizes = [1 if like.stride[n] == 0 else shape[n] for n in order]
        if like.dtype.is_floating_point:
            made = torch.randn(sizes, device=like.device).to(like.dtype)
        else:
            made = torch.zeros(sizes, dtype=like.dtype, device=like.device)
        return made.permute(*np.argsort(order).tolist()).expand(shape)
