"""Factors that stand for a width that has changed, folded into parameters: of an attention's queries, of a norm's weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gatec.axes import Atom, Walk, leaves, slots
from gatec.pruning.keeping import Closed, kept
from gatec.pruning.norms import epsilon_name

FACTS = ("scaled", "dotted")


@dataclass(frozen=True)
class Fold:
    """`rows` of parameters (name, dimension, positions after the cut) times `factor`, counted from -`plus`."""

    rows: tuple[tuple[str, int, tuple[int, ...]], ...]
    factor: float
    plus: float = 0.0

    def beside(self, other: Fold) -> Fold | None:
        """This one and another of the same factor in one; None where both are of one parameter."""
        if {name for name, _, _ in self.rows} & {name for name, _, _ in other.rows} or self.factor != other.factor:
            return None
        return replace(self, rows=(*self.rows, *other.rows))

    @torch.no_grad()
    def take(self, model: nn.Module, undo: list[Callable[[], Any]]) -> None:
        for name, dim, at in self.rows:
            value = model.get_parameter(name)
            factor = torch.ones(value.shape[dim], dtype=value.dtype, device=value.device)
            factor[list(at)] = self.factor
            shape = [-1 if n == dim else 1 for n in range(value.dim())]
            before = value.detach().clone()
            value.add_(self.plus).mul_(factor.reshape(shape)).sub_(self.plus)
            undo.append(partial(value.data.copy_, before))


def folds(path: str, walk: Walk, closed: Closed) -> Iterator[Fold]:
    """Rows below a module that may be those of its queries, for every axis of queries that has become narrower there.

    A scale of 1 / sqrt(d) that follows the width turns d into d': queries times sqrt(d' / d) undo it. Those
    of one layer at a time, and those of one tensor of a layer that has several.
    """
    for atom in closed:
        if not any(f.kind in FACTS and _around(path, f.where, atom, walk) for f in atom.facts):
            continue
        factor = float((1 - closed[atom].mean()) ** 0.5)
        yield from _alone(path, atom, walk, closed, factor)


def _around(path: str, where: str, atom: Atom, walk: Walk) -> bool:
    """Whether this is the module that multiplies, or the next one around it that holds parameters of what is multiplied."""
    outer, inner = path.split(".") if path else [], where.split(".") if where else []
    if inner[: len(outer)] != outer:
        return False
    between = ".".join(inner[: len(outer) + 1])
    return path == where or not any(name.startswith(f"{between}.") for name, _ in _dims(atom, walk))


def _dims(atom: Atom, walk: Walk) -> Iterator[tuple[str, int]]:
    """The dimensions of tensors in which slots of an axis lie."""
    for name, dims in walk.tensors.items():
        yield from ((name, dim) for dim, axes in enumerate(dims) if atom in set(leaves(axes)))


def _alone(path: str, atom: Atom, walk: Walk, closed: Closed, factor: float) -> Iterator[Fold]:
    owners: dict[str, list[tuple[str, int]]] = {}
    for name, dim in _dims(atom, walk):
        if name.startswith(f"{path}." if path else ""):
            owners.setdefault(name.rpartition(".")[0], []).append((name, dim))
    for own in owners.values():
        yield from _parts(own, atom, walk, closed, factor)
    for own in (o for o in owners.values() if len(o) > 1):
        for one in own:
            yield from _parts([one], atom, walk, closed, factor)


def _parts(own: list[tuple[str, int]], atom: Atom, walk: Walk, closed: Closed, factor: float) -> Iterator[Fold]:
    """All rows of one layer, or those of one of the things that it computes at once."""
    learned = dict(walk.model.named_parameters())
    tables = {(name, dim): slots(walk.tensors[name][dim])[atom] for name, dim in own if name in learned}
    if not tables:
        return
    times = min(t.shape[1] for t in tables.values())
    chosen = [np.ones(times, bool)]
    chosen += [
        np.arange(times) % each == 0 for each in (3, 2) if times % each == 0
    ]  # queries beside keys, head by head
    chosen += [np.arange(times) < n for n in sorted({times // 3, times // 2, *range(1, times)}) if 0 < n < times]
    for columns in chosen:
        rows = []
        for (name, dim), table in tables.items():
            order = np.sort(table, 1)[:, : len(columns)][:, columns].flatten()
            left = kept(walk.tensors[name][dim], closed)
            now = {old: new for new, old in enumerate(left)} if left is not None else {}
            rows.append((name, dim, tuple(now[int(n)] for n in order if int(n) in now)))
        yield Fold(tuple(rows), factor)


def norm_folds(path: str, module: nn.Module, share: float) -> Iterator[tuple[tuple[str, float], Fold]]:
    """A norm by the root of the mean square over d' of d features as a plain one: its weight times sqrt(d / d'), and its
    epsilon times d / d'; for norms that count their weight from 0 and for those that count it from -1. The weight times
    d / d' where a mean itself is divided by, as in global response norms.
    """
    weight = module._parameters.get("weight")
    name = epsilon_name(module)
    if weight is None or name is None or weight.dim() != 1:
        return
    rows = ((f"{path}.weight" if path else "weight", 0, tuple(range(len(weight)))),)
    for power, plus in ((-0.5, 0.0), (-0.5, 1.0), (-1.0, 0.0)):
        yield (name, getattr(module, name) / share), Fold(rows, share**power, plus)
