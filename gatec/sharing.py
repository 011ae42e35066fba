"""share_blocks(): neighbouring blocks with one set of weights. Not the same function: it says how far the output moved."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from gatec.blocks import AND, SHARED, shared
from gatec.errors import GatecError, Refused
from gatec.history import remember
from gatec.match import Flow
from gatec.pipeline import all_or_nothing, prepare
from gatec.program import Edit, Program
from gatec.report import Report, attach
from gatec.rewrite import Undo, back
from gatec.verify import copied, distance, forward

Model = TypeVar("Model", bound=nn.Module)


def share_blocks(model: Model, size: int = 2, *, inputs: Any = None, only: str | None = None) -> Model:
    """A copy of `model` in which each `size` neighbours of a chain of blocks compute with the weights of the first of them.

    Norms and gates stay each block's own. The model has fewer parameters and does the same work, but it is another function:
    `gatec.report(result).drift` says how far its output moved, and training has to win back what was lost.
    only   a regular expression over the paths of blocks
    """
    if size < 2:
        raise GatecError("groups of 2 blocks or more", found=str(size))
    model = copied(model)
    program = prepare(model, inputs)
    with all_or_nothing() as undo:
        groups = list(_groups(program, size, only))
        edits = [edit for group in groups for edit in _shared(model, group, undo)]
        done = [AND.join(g) for g in groups if any(e.site == g[1] and e.verdict == "put" for e in edits)]
        if not done:
            found = (
                "; ".join(f"{e.site}: {e.why}" for e in edits[:4])
                or f"none beside each other in {type(model).__name__}"
            )
            raise GatecError("blocks that can share weights", found=found)
        remember(model, {"compact": done, "kind": SHARED}, undo)
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(edits), moved), undo)
    return model


def _groups(program: Program, size: int, only: str | None) -> Iterator[list[str]]:
    chains: dict[str, list[str]] = defaultdict(list)
    for call in Flow(program.canon(forms=False)).blocks.values():
        if only is None or re.search(only, call.path):
            chains[call.path.rpartition(".")[0]].append(call.path)
    for outer, paths in chains.items():
        order = list(program.module(outer)._modules)
        paths.sort(key=lambda path: order.index(path.rpartition(".")[2]))
        yield from (group for i in range(0, len(paths), size) if len(group := paths[i : i + size]) > 1)


def _shared(model: nn.Module, group: list[str], undo: Undo) -> list[Edit]:
    steps: Undo = []
    try:
        shared(model, group, steps)
    except Refused as e:
        back(steps)
        return [Edit("share", path, "left", str(e)) for path in group[1:]]
    undo.extend(steps)
    return [
        Edit("share", path, "put", f"computes with the weights of {group[0]}: another function") for path in group[1:]
    ]
