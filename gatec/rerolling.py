"""gatec.reroll: a model whose Python loops over time run for all steps at once."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from gatec.errors import GatecError
from gatec.onnx import register_form
from gatec.pipeline import all_or_nothing, prepare
from gatec.report import Report, attach, report
from gatec.reroll import reroll_program
from gatec.trail import note
from gatec.verify import copied, distance, forward

Model = TypeVar("Model", bound=nn.Module)


def reroll(model: Model, inputs: Any = None) -> Model:
    """A copy of `model` with its loops over time as recurrences, exact and for every length where that can be proven.

    `gatec.report(result)` says of every loop where it is and what became of it, or why it stays.
    """
    return reroll_(copied(model), inputs)


def reroll_(model: Model, inputs: Any = None) -> Model:
    """`reroll` in place; rolled back whole if anything fails."""
    program = prepare(model, inputs)
    with all_or_nothing() as undo:
        edits = reroll_program(program, undo)
        note("reroll", model, edits)
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(program.edits), moved, tuple(program.missed.items())), undo)
    return model


def rolled(model: nn.Module, inputs: Any) -> nn.Module | None:
    """The model with its loops as recurrences, if it has loops that can be."""
    try:
        found = reroll(model, inputs)
    except GatecError:
        return None
    return found if any(e.verdict == "put" for e in report(found).edits) else None


register_form(rolled, "loops over time were rolled: unrolled, they would have one length")
