"""What was done to a model, kept with it: every decision with its reason, and how far the output moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatec.errors import GatecError
from gatec.program import Edit
from gatec.roofline import Price, machine


@dataclass(frozen=True)
class Report:
    """`drift` is the relative change of the whole model's output on the example inputs, in the model's own dtype.

    `regions` are those that were fused, with what they cost in the recorded call and what they would as one kernel.
    """

    edits: tuple[Edit, ...]
    drift: float | None = None
    missed: tuple[tuple[str, str], ...] = ()
    regions: tuple[tuple[str, Price], ...] = ()

    def __str__(self) -> str:
        counts = Counter(e.verdict for e in self.edits)
        tail = "  ".join(f"{counts[v]} {v}" for v in ("put", "left", "near") if counts[v])
        moved = f"  model drift {self.drift:.1e}" if self.drift is not None else ""
        return "\n".join([*map(str, self.edits), *self.priced(), f"{tail}{moved}".strip()])

    def priced(self, name: str = "h200") -> list[str]:
        """A line for each region: launches, bytes, intensity, expected time on a machine of `gatec.roofline`."""
        return [f"{region}: {p.text(machine(name))}" for region, p in self.regions]


def attach(model: nn.Module, report: Report, undo: list[Callable[[], Any]]) -> None:
    """Keep the report with the model, after those of earlier conversions."""
    before = vars(model).get("_gatec_report")
    vars(model)["_gatec_report"] = (*(before or ()), report)
    undo.append(lambda: vars(model).update(_gatec_report=before) if before else vars(model).pop("_gatec_report"))


def report(model: nn.Module) -> Report:
    """The report of the last conversion of `model`."""
    kept = vars(model).get("_gatec_report")
    if not kept:
        raise GatecError(
            "a model that gatec has rewritten", found=type(model).__name__, hint='gatec.convert(model, "glu")'
        )
    last: Report = kept[-1]
    return last
