"""compact(): remove the hidden units whose gate is closed; what is left equals the gated model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from gatec.capture.unit import Unit
from gatec.errors import GatecError, Refused
from gatec.history import remember
from gatec.pipeline import all_or_nothing, copied, prepare
from gatec.program import Edit, Program
from gatec.report import Report, attach
from gatec.rewrite import Rewrite, back
from gatec.shrink import alone, closing, named, remove, site_of
from gatec.verify import Probe, distance, forward

Model = TypeVar("Model", bound=nn.Module)


def compact(model: Model, inputs: Any = None) -> Model:
    """A copy of `model` without the hidden units that pruning gates have closed, and without those gates.

    Equal to the gated model up to rounding (measured per unit, in float64 where it fits: 1e-12 relative), or the unit
    is left as it is, with the reason in `gatec.report(result)`.
    """
    model = copied(model)
    gated = closing(model)
    if not gated:
        raise GatecError(
            "a model with pruning gates", found=f"none in {type(model).__name__}", hint='gatec.convert(model, "prune")'
        )
    program = prepare(model, inputs)
    with all_or_nothing() as undo:
        for path, unit, rewrite in gated:
            program.edits.append(_unit(program, path, unit, rewrite, undo))
        if not any(e.verdict == "put" for e in program.edits):
            raise GatecError(
                "a unit that can be compacted", found="; ".join(f"{e.site}: {e.why}" for e in program.edits[:4])
            )
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(program.edits), moved), undo)
        remember(model, {"compact": sorted(e.site for e in program.edits if e.verdict == "put")}, undo)
    return model


def _unit(program: Program, path: str, unit: Unit, rewrite: Rewrite, undo: list[Callable[[], Any]]) -> Edit:
    site, name = site_of(program.model, path, rewrite, program.names), named(path, rewrite)
    steps: list[Callable[[], Any]] = []
    try:
        alone(site, unit, rewrite)
        probe = Probe.of(site.module, program.calls[path][0])
        if probe is None:
            raise Refused("its call cannot be repeated alone, so that the result could not be proved")
        assert rewrite.gate.closes is not None
        closed: Tensor = rewrite.gate.closes(site)
        remove(site, unit, rewrite, closed, steps)
        drift = probe.drift(site.module)
        if not drift <= probe.rounding:
            raise Refused(f"the result would differ from the gated model by {drift:.1e}")
    except (Refused, RuntimeError, ValueError) as e:
        back(steps)
        return Edit("compact", name, "left", str(e).splitlines()[0])
    undo.extend(steps)
    words = f"{int(closed.sum())} of {closed.numel()} units removed, drift {drift:.1e}{probe.note}"
    return Edit("compact", name, "put", words, drift)
