"""reroll(): the loops over time of a model, each as one recurrence; every loop ends as put or left, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gatec.capture import unit_of
from gatec.errors import Refused
from gatec.program import Edit, Program
from gatec.reroll.graph import candidates
from gatec.reroll.rewrite import Reroll
from gatec.rewrite import Undo, back, installed

EXACT = 1e-10
NARROW = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}


def reroll_program(program: Program, undo: Undo, *, only: Callable[[str], bool] | None = None,
                   tick: Callable[[str], Any] | None = None, dry: bool = False) -> list[Edit]:  # fmt: skip
    """The edits of every module whose forward has a loop over steps."""
    edits: list[Edit] = []
    twins: dict[Any, Any] = {}
    for path in list(program.calls):
        if only is not None and not only(path):
            continue
        unit = unit_of(program.module(path))
        if unit is not None and any(r.name == "reroll" for r in unit.rewrites):
            edits.append(Edit("reroll", path, "left", "its loops were rolled already"))
            continue
        graph = program.graph_of(path)
        if graph is None or not candidates(graph):
            continue
        if tick:
            tick(path)
        edits += _one(program, path, graph, undo, twins, dry)
    program.edits.extend(edits)
    return edits


def rounding(graph: fx.Graph) -> float:
    """The drift in float64 that is rounding: more where the forward itself goes on in a narrower type."""
    given = [v for n in graph.nodes for v in (*n.args, *n.kwargs.values()) if isinstance(v, torch.dtype)]
    given += [NARROW[str(n.target)] for n in graph.nodes if n.op == "call_method" and n.target in NARROW]
    return max([EXACT, *(16 * float(torch.finfo(d).eps) for d in given if d in NARROW.values())])


def _one(program: Program, path: str, graph: fx.Graph, undo: Undo, twins: dict[Any, Any], dry: bool) -> list[Edit]:
    module, rewrite = program.module(path), Reroll()
    steps: Undo = []
    try:
        drift, probe = installed(program, path, module, rewrite, steps, twins)
        if probe is not None and drift is not None and not drift <= max(probe.rounding, rounding(graph)):
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
