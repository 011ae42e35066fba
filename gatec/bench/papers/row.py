"""One block of the literature under every part of gatec: a row of `gatec bench papers`."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gatec.bench.coverage.same import same
from gatec.bench.papers.covered import covered
from gatec.bench.papers.paper import Inputs, Paper
from gatec.capture.structure import flatten
from gatec.capture.unit import compiled
from gatec.catalog import gates
from gatec.errors import GatecError
from gatec.fusing import fuse, kernels_of
from gatec.onnx import export
from gatec.pipeline import convert, why
from gatec.program import Program
from gatec.recognise import Find, finds

Row = dict[str, Any]


def row(paper: Paper) -> Row:
    """What was captured, found, fused and exported, and which passes put such a gate, or could be put here."""
    model, inputs = paper.module().eval(), paper.inputs()
    found = finds(Program.of(copy.deepcopy(model), inputs, {}).canon())
    return {
        "paper": paper.name,
        "about": paper.title,
        "captured": captured(model, inputs),
        "found": ", ".join(f"{kind} {n}" for kind, n in sorted(Counter(f.kind for f in found).items())),
        "as written": Counter(f.kind for f in found) == paper.gates,
        "regions": len(kernels_of(fuse(model, inputs, everywhere=True))),
        **covered(model, inputs),
        **exported(paper),
        "inserted by": inserting(found),
        "takes": takes(model, inputs),
    }


def captured(model: nn.Module, inputs: Inputs) -> str:
    """ "to the bit", or why there is no graph, or "differs"."""
    program = Program.of(copy.deepcopy(model), inputs, {})
    graph = program.graph_of("")
    if graph is None:
        return program.missed[""]
    with torch.no_grad():
        again = compiled(graph).run(copy.deepcopy(model), *flatten(inputs, {}).leaves)
        return "to the bit" if same(model(*inputs), again) else "differs"


def exported(paper: Paper) -> Row:
    """The largest relative drift of onnxruntime over all shapes tried, or what is missing; the parts that may be skipped."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = export(paper.module(), Path(folder) / "model.onnx", paper.inputs())
            row: Row = {"onnx": max(p.max_rel for p in done.parity), "shapes": len(done.parity)}
            row["fixed"] = [n.partition(":")[0] for n in done.notes if " stays " in n]
            if paper.skips:
                skipping = export(paper.module(), Path(folder) / "skipping.onnx", paper.inputs(), skip=True)
                row["skips"] = len(skipping.skips)
        except GatecError as error:
            return {"onnx": f"{error.wanted}: {error.found}"}
    return row


def inserting(found: list[Find]) -> list[str]:
    """The passes that put a gate of the same kind with the same signal."""
    wanted = {(f.kind, f.signal) for f in found}
    return [name for name, put in puts().items() if wanted & put]


@cache
def puts() -> dict[str, set[tuple[str, str]]]:
    """What the census finds anew in the cases of each pass, after it was put there."""
    return {name: {new for case in gate.cases if not case.refuses for new in _new(name, case)}
            for name, gate in gates().items()}  # fmt: skip


def _new(name: str, case: Any) -> set[tuple[str, str]]:
    model = case.model().eval()
    before, after = (
        Counter((f.kind, f.signal) for f in finds(Program.of(m, case.inputs, {}).canon()))
        for m in (model, convert(model, name, inputs=case.inputs, **case.options))
    )
    return set(after - before)


def takes(model: nn.Module, inputs: Inputs) -> list[str]:
    """The passes that find a place in this model."""
    return [name for name in gates()
            if any(e.verdict == "put" for e in why(copy.deepcopy(model), name, inputs=inputs))]  # fmt: skip
