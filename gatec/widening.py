"""Copies of a hidden layer's units beside each other: rows of up (and gate), columns of down, sizes mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatec.errors import Refused
from gatec.match import Linear

Slices = tuple[tuple[int, int], ...]
Undo = list[Callable[[], Any]]
OUT, IN = ("out_features", "nf"), ("in_features", "nx")


@dataclass(frozen=True)
class Wide:
    """How one tensor is made from the one before: these slices of a dimension, one after the other, times `scale`."""

    path: str
    dim: int
    size: int
    slices: Slices
    scale: float = 1.0

    def made(self, value: Tensor) -> Tensor:
        wide = torch.cat([value.narrow(self.dim, start, stop - start) for start, stop in self.slices], self.dim)
        return wide if self.scale == 1 else wide * self.scale

    def before(self, shape: torch.Size) -> torch.Size:
        """The shape of what a tensor of this shape is made from."""
        return torch.Size([self.size if i == self.dim else n for i, n in enumerate(shape)])

    def taken_back(self, value: Tensor) -> Tensor:
        """What `value` was made from; refused where its copies differ by now."""
        first: dict[int, Tensor] = {}
        at = 0
        for start, stop in self.slices:
            first.setdefault(start, value.narrow(self.dim, at, stop - start))
            at += stop - start
        found = torch.cat([first[start] for start in sorted(first)], self.dim) / self.scale
        if not torch.equal(self.made(found), value):
            raise Refused(f"the copies in {self.path} differ by now")
        return found


def widen(module: nn.Module, layers: Mapping[str, Any], copies: int, scale: float,
          undo: Undo) -> tuple[dict[str, Any], tuple[Wide, ...]]:  # fmt: skip
    """Lay `copies` of the hidden units beside each other in the live parameters.

    Gives the layers as they are called then, and how their tensors are made from those before.
    """
    linears = {n: k for n, k in layers.items() if isinstance(k, Linear)}
    plans: dict[str, Wide] = {}
    found = dict(layers)
    for name, spec in linears.items():
        if name == "down":
            found[name] = replace(spec, fan=spec.fan * copies)
            _inputs(plans, module, spec, copies, scale)
        else:
            packed = [k for n, k in linears.items() if n != "down" and k.weight == spec.weight]
            slices, found[name] = _outputs(spec, packed, copies)
            _rows(plans, spec, slices)
    for plan in plans.values():
        _replace(module, plan.path, plan.made(module.get_parameter(plan.path).detach()), undo)
    _sizes(module, linears, undo)
    return found, tuple(plans.values())


def narrow(module: nn.Module, layers: Mapping[str, Any], plans: tuple[Wide, ...]) -> None:
    """One copy of the hidden units again, where all are the same."""
    values = [plan.taken_back(module.get_parameter(plan.path).detach()) for plan in plans]
    for plan, value in zip(plans, values, strict=True):
        _replace(module, plan.path, value, [])
    _sizes(module, {n: k for n, k in layers.items() if isinstance(k, Linear)}, [])


def _outputs(spec: Linear, packed: list[Linear], copies: int) -> tuple[Slices, Linear]:
    """Which rows follow each other in the wide weight, and the layer's own among them."""
    if any(part.rows[2] != 1 for part in packed):
        covered = sorted(i for part in packed for i in range(*part.rows))
        if covered != list(range(spec.width)) or any(part.rows[2] < 1 for part in packed):
            raise Refused(f"the rows of {spec.weight} are not all of its hidden layer, and lie apart")
        start, stop, step = spec.rows
        wide = spec.width * copies
        return ((0, spec.width),) * copies, replace(spec, width=wide, rows=(start, wide - spec.width + stop, step))
    slices: list[tuple[int, int]] = []
    done = at = begin = 0
    for start, stop, _ in sorted(part.rows for part in packed):
        slices += [(done, start)] * (start > done) + [(start, stop)] * copies
        begin = begin if start > spec.rows[0] else at + start - done
        at, done = at + start - done + (stop - start) * copies, stop
    slices += [(done, spec.width)] * (spec.width > done)
    wide = at + spec.width - done
    return tuple(slices), replace(spec, width=wide, rows=(begin, begin + spec.out * copies, 1))


def _rows(plans: dict[str, Wide], spec: Linear, slices: Slices) -> None:
    plans[spec.weight] = Wide(spec.weight, int(spec.transposed), spec.width, slices)
    if spec.bias is not None:
        plans[spec.bias] = Wide(spec.bias, 0, spec.width, slices)


def _inputs(plans: dict[str, Wide], module: nn.Module, spec: Linear, copies: int, scale: float) -> None:
    dim = int(not spec.transposed)
    size = module.get_parameter(spec.weight).shape[dim]
    plans[spec.weight] = Wide(spec.weight, dim, size, ((0, size),) * copies, scale)


def _replace(module: nn.Module, path: str, value: Tensor, undo: Undo) -> None:
    owner_path, _, leaf = path.rpartition(".")
    owner, old = module.get_submodule(owner_path), module.get_parameter(path)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    undo.append(partial(setattr, owner, leaf, old))


def _sizes(module: nn.Module, linears: dict[str, Linear], undo: Undo) -> None:
    """Mend the attributes that tell the sizes of the layers."""
    for name, spec in linears.items():
        owner = module.get_submodule(spec.weight.rpartition(".")[0])
        weight = module.get_parameter(spec.weight)
        size = weight.shape[int((name != "down") == spec.transposed)]
        for attribute in IN if name == "down" else OUT:
            if isinstance(getattr(owner, attribute, None), int):
                undo.append(partial(setattr, owner, attribute, getattr(owner, attribute)))
                setattr(owner, attribute, size)
