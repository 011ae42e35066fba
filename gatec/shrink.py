"""Hidden units taken out of the layers around them: rows of up (and gate), columns of down, sizes and row ranges mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatec.capture import unit_of
from gatec.capture.unit import Unit
from gatec.errors import GatecError, Refused
from gatec.match import Linear
from gatec.match.terms import join
from gatec.rewrite import Rewrite, site_name, take_out
from gatec.site import Site

HIDDEN = "hidden units"


def closing(model: nn.Module, kind: str = HIDDEN) -> list[tuple[str, Unit, Rewrite]]:
    """Every unit of the model with a gate that can be closed, for gates that close things of this kind."""
    units = [(p, u) for p, m in model.named_modules() if (u := unit_of(m))]
    gated = [(p, u, r) for p, u in units for r in u.edits if isinstance(r, Rewrite)]
    return [(p, u, r) for p, u, r in gated if r.gate.closes is not None and r.gate.of == kind]


def site_of(model: nn.Module, path: str, rewrite: Rewrite, names: dict[int, list[str]]) -> Site:
    return Site(model, path, model.get_submodule(path), rewrite.match, added=rewrite.added, names=names)


def shrink(model: nn.Module, shapes: dict[str, tuple[int, ...]], sites: Iterable[str]) -> None:
    """Give the units at `sites` the sizes of a saved compacted model; their values come from the checkpoint afterwards."""
    gated = closing(model)
    missing = set(sites) - {named(p, r) for p, _, r in gated}
    if missing:
        raise GatecError(f"the pruning gates of {type(model).__name__} that were compacted", found=f"none at {sorted(missing)[0]}",
                         hint="load into a fresh model of the same configuration")  # fmt: skip
    for path, unit, rewrite in gated:
        if named(path, rewrite) not in sites:
            continue
        site = site_of(model, path, rewrite, {})
        down = rewrite.linears["down"]
        saved = shapes.get(join(path, down.weight))
        if saved is None or len(saved) != 2:
            raise GatecError("the shape of a compacted layer", found=f"no {join(path, down.weight)} in the checkpoint")
        remove(site, unit, rewrite, torch.arange(rewrite.linears["up"].out) >= saved[0 if down.transposed else 1], [])


def alone(site: Site, unit: Unit, rewrite: Rewrite) -> None:
    """Refuse where another rewrite or another owner of the weights stands in the way."""
    later = unit.rewrites[unit.rewrites.index(rewrite) + 1 :]
    same = [r for r in unit.rewrites if not r.only_fuses and r is not rewrite and _hidden(r) & _hidden(rewrite)]
    blocking = [r.name for r in same if r in later or r.name == "moe"]
    if blocking:
        raise Refused(f"{blocking[0]} was put on the same hidden layer, which compact cannot shrink with it")
    for name in site.match.layers:
        site.movable(name)


def _hidden(rewrite: Rewrite) -> set[str]:
    """The weights that make the hidden layer of a rewrite."""
    return {spec.weight for name, spec in rewrite.layers.items() if name != "down"}


def named(path: str, rewrite: Rewrite) -> str:
    """The site of a rewrite of the unit at `path`, as reports call it."""
    return site_name(k.under(path) for k in rewrite.layers.values())


def remove(site: Site, unit: Unit, rewrite: Rewrite, closed: Tensor, steps: list[Callable[[], Any]]) -> None:
    gone = closed.nonzero().flatten().tolist()
    rows: dict[str, set[int]] = {}
    for name, spec in rewrite.linears.items():
        if name != "down":
            rows.setdefault(spec.weight, set()).update(range(*spec.rows)[i] for i in gone)
    specs = {s.weight: s for s in rewrite.linears.values()}
    for weight, dead in rows.items():
        _shrink(site.module, specs[weight], sorted(dead), out=True, steps=steps)
    _shrink(site.module, rewrite.linears["down"], gone, out=False, steps=steps)
    _forget(site, unit, rewrite, rows, steps)


def _shrink(module: nn.Module, spec: Linear, dead: list[int], *, out: bool, steps: list[Callable[[], Any]]) -> None:
    """Drop outputs (or inputs) of one linear layer, its bias with its outputs, and mend its size attributes."""
    owner_path, _, leaf = spec.weight.rpartition(".")
    owner = module.get_submodule(owner_path)
    dim = int(out == spec.transposed)
    _cut(owner, leaf, dim, dead, steps)
    if out and spec.bias is not None:
        _cut(module.get_submodule(spec.bias.rpartition(".")[0]), spec.bias.rpartition(".")[2], 0, dead, steps)
    size = getattr(owner, leaf).shape[dim]
    for name in ("out_features", "nf") if out else ("in_features", "nx"):
        if hasattr(owner, name):
            steps.append(partial(setattr, owner, name, getattr(owner, name)))
            setattr(owner, name, size)


def _cut(owner: nn.Module, name: str, dim: int, dead: list[int], steps: list[Callable[[], Any]]) -> None:
    old = getattr(owner, name)
    keep = torch.ones(old.shape[dim], dtype=torch.bool, device=old.device)
    keep[torch.tensor(dead, dtype=torch.long, device=old.device)] = False
    new = nn.Parameter(old.detach().index_select(dim, keep.nonzero().flatten()), requires_grad=old.requires_grad)
    setattr(owner, name, new)
    steps.append(lambda: setattr(owner, name, old))


def _forget(
    site: Site, unit: Unit, rewrite: Rewrite, rows: dict[str, set[int]], steps: list[Callable[[], Any]]
) -> None:
    """Take the gate out of the unit; a unit without rewrites is the user's module again."""
    take_out(site.module, unit, [rewrite], steps)
    for other in (r for r in unit.rewrites if not r.only_fuses):
        steps.append(lambda r=other, layers=other.layers: setattr(r, "layers", layers))  # type: ignore[misc]
        other.layers = {**other.layers, **_moved(other.linears, rows)}


def _moved(layers: dict[str, Linear], rows: dict[str, set[int]]) -> dict[str, Linear]:
    """The layers with the row ranges that they have after `rows` are gone."""
    found = {}
    for name, spec in layers.items():
        dead = rows.get(spec.weight, set())
        left = [i for i in range(spec.width) if i not in dead]
        own = [n for n, i in enumerate(left) if i in range(*spec.rows)]
        start, step = (own[0], own[1] - own[0]) if len(own) > 1 else (0, 1)
        found[name] = replace(spec, width=len(left), rows=(start, start + step * len(own), step))
    return found
