"""What a model costs as a function of how many slots of each group are left, differentiable in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatec.axes import Ledger
from gatec.pruning.extents import Extent, Widths, extent, product, value
from gatec.pruning.group import Groups


class Cost(Protocol):
    def of(self, widths: Widths) -> Any: ...


@dataclass
class Sum:
    """Products of widths, each at a rate: parameters, multiplications."""

    fixed: float = 0.0
    rates: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def add(self, rate: float, of: Extent) -> None:
        if of.factors:
            self.rates[of.factors] = self.rates.get(of.factors, 0.0) + rate * of.number
        else:
            self.fixed += rate * of.number

    def of(self, widths: Widths) -> Any:
        return self.fixed + sum(rate * Extent(1, factors).of(widths) for factors, rate in self.rates.items())


@dataclass
class Peak:
    """What is always there, and the most of what is there at once: `moments` say how much of each kind of tensor."""

    always: Sum
    kinds: tuple[Extent, ...]
    moments: NDArray[np.float64]

    def of(self, widths: Widths) -> Any:
        sizes = torch.stack([torch.as_tensor(kind.of(widths), dtype=torch.float64) for kind in self.kinds])
        most = (torch.from_numpy(self.moments).to(sizes.device) @ sizes).max()
        return self.always.of(widths) + most


@dataclass
class Table:
    """Something measured at several sizes of some factors: `levels` are the sizes of each in rising order, `taken` the
    measurements, in a dimension for each factor.
    """

    factors: tuple[Any, ...]
    levels: tuple[tuple[int, ...], ...]
    taken: NDArray[np.float64]


@dataclass
class Tables:
    """What was measured, linear between its levels, beside what is in proportion to something and what is always the same."""

    rest: Sum
    tables: list[Table]

    def of(self, widths: Widths) -> Any:
        factors = dict.fromkeys(f for table in self.tables for f in table.factors)
        known = {f: torch.as_tensor(value(f, widths)) for f in factors}
        alike: dict[tuple[int, ...], list[Table]] = {}
        for table in self.tables:
            alike.setdefault(table.taken.shape, []).append(table)
        return self.rest.of(widths) + sum(_between(tables, known) for tables in alike.values())


def _between(tables: list[Table], known: Mapping[Any, Tensor]) -> Tensor:
    """The sum of tables of one shape."""
    at = torch.stack([torch.stack([known[f] for f in table.factors]) for table in tables])
    taken = torch.from_numpy(np.stack([table.taken for table in tables])).to(at.device)
    rows = torch.arange(len(tables), device=at.device)
    for n, x in enumerate(at.unbind(1)):
        levels = torch.tensor([table.levels[n] for table in tables], dtype=at.dtype, device=at.device)
        above = torch.searchsorted(levels, x.detach()[:, None].contiguous()).clamp(1, levels.shape[1] - 1)[:, 0]
        low, high = levels[rows, above - 1], levels[rows, above]
        share = ((x - low) / (high - low)).reshape(-1, *[1] * (taken.dim() - 2))
        taken = taken[rows, above - 1] + share * (taken[rows, above] - taken[rows, above - 1])
    return taken.sum()


def counted(found: Groups, ledger: Ledger, names: Mapping[Any, str]) -> dict[str, Cost]:
    """Parameters, multiplications and bytes of a walked model, where `names` are those of the gated atoms."""
    parameters, multiplications, always = Sum(), Sum(), Sum()
    kept = dict(found.model.named_buffers()) | found.walk.learned
    for name, dims in found.walk.tensors.items():
        size = product(extent(dim, names) for dim in dims)
        always.add(kept[name].element_size(), size)
        if name in found.walk.learned:
            parameters.add(1, size)
            multiplications.add(found.walk.macs.get(name, 0) / max(kept[name].numel(), 1), size)
    return {"parameters": parameters, "multiplications": multiplications, "memory": _peak(always, ledger, names)}


def _peak(always: Sum, ledger: Ledger, names: Mapping[Any, str]) -> Peak:
    sizes = [product(extent(dim, names) for dim in like.dims) for like in ledger.results]
    kinds = {factors: n for n, factors in enumerate(dict.fromkeys(s.factors for s in sizes))}
    moments = set[tuple[float, ...]]()
    for there in ledger.moments:
        row = np.zeros(len(kinds))
        for n in there:
            row[kinds[sizes[n].factors]] += sizes[n].number * ledger.results[n].dtype.itemsize
        moments.add(tuple(row.tolist()))
    return Peak(always, tuple(Extent(1, f) for f in kinds), _highest(moments))


def _highest(moments: Iterable[tuple[float, ...]]) -> NDArray[np.float64]:
    """Without those that are below another one in everything."""
    rows = np.array(sorted(moments, key=sum, reverse=True))
    kept = 0
    for row in rows:
        if not (row <= rows[:kept]).all(1).any():
            rows[kept] = row
            kept += 1
    return rows[:kept].copy()


def whole(cost: Cost, sizes: Mapping[str, int]) -> float:
    """What it is with all slots."""
    return float(cost.of({name: float(size) for name, size in sizes.items()}))
