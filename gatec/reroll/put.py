"""reroll(): the loops over time of a model, each as one recurrence; every loop ends as put or left, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gatec.capture import unit_of
from gatec.errors import Refused
from gatec.program import Edit, Program
from gatec.reroll.graph import candidates
from gatec.reroll.rewrite import Reroll
from gatec.rewrite import Undo, back, installed

EXACT = 1e-10  # drift in float64 that is rounding


def reroll_program(program: Program, undo: Undo, *, only: Callable[[str], bool] | None = None,
                   tick: Callable[[str], Any] | None = None, dry: bool = False) -> list[Edit]:  # fmt: skip
    """The edits of every module whose forward has a loop over steps."""
    edits: list[Edit] = []
    twins: dict[Any, Any] = {}
    for path in list(program.calls):
        graph = program.graph_of(path)
        if graph is None or (only is not None and not only(path)) or not candidates(graph):
            continue
        if tick:
            tick(path)
        edits += _one(program, path, undo, twins, dry)
    program.edits.extend(edits)
    return edits


def _one(program: Program, path: str, undo: Undo, twins: dict[Any, Any], dry: bool) -> list[Edit]:
    module, rewrite, steps = program.module(path), Reroll(), []  # type: tuple[nn.Module, Reroll, Undo]
    unit = unit_of(module)
    if unit is not None and any(r.name == rewrite.name for r in unit.rewrites):
        return [Edit("reroll", path, "left", "its loops were rolled already")]
    try:
        drift, probe = installed(program, path, module, rewrite, steps, twins)
        if probe is not None and drift is not None and not drift <= max(probe.rounding, EXACT):
            raise Refused(f"rolled, its output would move by {drift:.1e}")
    except Refused as e:
        back(steps)
        return [Edit("reroll", path, "left", str(e))]
    except BaseException:
        back(steps)
        raise
    if dry:
        back(steps)
        return [Edit("reroll", path, "put", f"could be put; {rewrite.told}")]
    undo.extend(steps)
    note = f"{probe.note if probe else ''}; {rewrite.told}"
    return [Edit("reroll", path, "put", "" if probe else "not measured alone", drift, note),
            *(Edit("reroll", path, "left", why) for why in rewrite.left)]  # fmt: skip
