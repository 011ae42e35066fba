"""compact(): remove what gates have closed; what is left equals the gated model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from gatec.capture import evaluating
from gatec.compaction import blocks, hidden, rows
from gatec.errors import GatecError
from gatec.history import history
from gatec.pipeline import all_or_nothing, prepare
from gatec.program import Edit
from gatec.pruning import has_gates, narrow
from gatec.report import Report, attach
from gatec.shrink import closing
from gatec.verify import copied, distance, forward

Model = TypeVar("Model", bound=nn.Module)
KINDS = (blocks.KIND, hidden.KIND, rows.KIND)  # blocks first: what is left of the model then has its last names


def compact(model: Model, inputs: Any = None) -> Model:
    """A copy of `model` without what gates have closed, and without those gates: channels, heads and widths (`gatec.prune`),
    hidden units, blocks and rows of embeddings (passes).

    Equal to the gated model up to rounding (measured, in float64 where it fits: 1e-12 relative; without its closed
    blocks it is equal to the bit), or a gate is left as it is, with the reason in `gatec.report(result)`. What has been
    compacted and gated no more comes back as it is.
    """
    model = copied(model)
    kinds = [kind for kind in KINDS if closing(model, kind.name)]
    done = any(step.keys() & {"compact", "removed"} for step in history(model))
    if not kinds and not has_gates(model) and not done:
        raise GatecError(
            "a model with pruning gates", found=f"none in {type(model).__name__}", hint='gatec.convert(model, "prune")'
        )
    report, edits, moved = Report(()), list[Edit](), 0.0
    with torch.no_grad(), evaluating(model), all_or_nothing() as undo:
        if has_gates(model):
            report = narrow(model, inputs, undo)
            edits, moved = list(report.edits), report.drift or 0.0
        if kinds:
            gated = prepare(model, inputs)
            for kind in kinds:
                found = closing(model, kind.name)
                edits += kind.take(prepare(model, inputs) if edits else gated, found, undo)
            moved = max(moved, distance(forward(model, gated), gated.calls[""][0].output))
        if not done and not any(e.verdict == "put" for e in edits):
            raise GatecError("a unit that can be compacted", found="; ".join(f"{e.site}: {e.why}" for e in edits[:4]))
        attach(model, replace(report, edits=tuple(edits), drift=moved), undo)
    return model
