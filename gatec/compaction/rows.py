"""Rows of embeddings whose gate is closed: their ids share one row of zeros."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatec.compaction.kind import Gated, Kind
from gatec.embeddings import ROWS, Kept, kept, put, replaceable
from gatec.errors import Refused, first_line
from gatec.history import remember, without
from gatec.program import Edit, Program
from gatec.rewrite import Undo, back, take_out
from gatec.shrink import site_of
from gatec.verify import distance


def take(program: Program, gated: list[Gated], undo: Undo) -> list[Edit]:
    edits = [_table(program, one, undo) for one in gated]
    done = [g for g, e in zip(gated, edits, strict=True) if e.verdict == "put"]
    smaller = sorted(path for path, _, _ in done if isinstance(program.module(path), Kept))
    without(program.model, [(rewrite.name, rewrite.site_under(path)) for path, _, rewrite in done])
    if smaller:
        remember(program.model, {"compact": smaller, "kind": ROWS}, undo)
    return edits


def _table(program: Program, gated: Gated, undo: Undo) -> Edit:
    path, unit, rewrite = gated
    model, table, steps = program.model, program.module(path), list[Any]()
    site = site_of(model, path, rewrite, program.names)
    try:
        if len(unit.edits) > 1:
            raise Refused(f"{next(r.name for r in unit.edits if r is not rewrite)} was put around the same table")
        assert rewrite.gate.factors is not None
        factors: Tensor = rewrite.gate.factors(site)
        every = torch.arange(factors.numel(), device=factors.device)
        before = _rows(table, every)
        take_out(table, unit, [rewrite], steps)
        _replaced(model, path, replaceable(table, program.names.get(id(table.weight), [])), factors, steps)
        drift = distance(_rows(program.module(path), every), before)
        if not drift <= torch.finfo(before.dtype).eps * 16:
            raise Refused(f"the result would differ from the gated model by {drift:.1e}")
    except (Refused, RuntimeError, ValueError, IndexError) as e:
        back(steps)
        return Edit("compact", path, "left", first_line(e))
    undo.extend(steps)
    gone = int((factors == 0).sum())
    return Edit("compact", path, "put", f"{gone} of {factors.numel()} rows removed, drift {drift:.1e}", drift)


@torch.no_grad()
def _rows(table: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = table(ids)
    return found


@torch.no_grad()
def _replaced(model: nn.Module, path: str, table: nn.Embedding, factors: Tensor, steps: Undo) -> None:
    """A smaller table; where no row is gone, the same one with its rows scaled."""
    if bool((factors == 0).any()):
        put(model, path, kept(table, factors), steps)
        return
    steps.append(partial(setattr, table, "weight", table.weight))
    table.weight = nn.Parameter(table.weight * factors.to(table.weight).unsqueeze(-1), table.weight.requires_grad)


KIND = Kind(ROWS, take)
