"""What was done to a model, kept with it: every decision with its reason, and how far the output moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gatec.dispatch import FAILED
from gatec.errors import GatecError
from gatec.program import Edit
from gatec.roofline import Price, machine


@dataclass(frozen=True)
class Report:
    """`drift` is the relative change of the whole model's output on the example inputs, in the model's own dtype.

    `regions` are those that were fused, with what they cost in the recorded call and what they would as one kernel.
    `failed` are ways of their kernels that are never used on this device, and why: known once they were tried.
    """

    edits: tuple[Edit, ...]
    drift: float | None = None
    missed: tuple[tuple[str, str], ...] = ()
    regions: tuple[tuple[str, Price], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        counts = Counter(e.verdict for e in self.edits)
        tail = "  ".join(f"{counts[v]} {v}" for v in ("put", "left", "near") if counts[v])
        moved = f"  model drift {self.drift:.1e}" if self.drift is not None else ""
        return "\n".join([*map(str, self.edits), *self.priced(), *self._failures(), f"{tail}{moved}".strip()])

    def _failures(self) -> list[str]:
        return [f"{what} is not used: {why}" for what, why in self.failed]

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
    keys = {f"{k.name}_{k.key}" for k in vars(model).get("_gatec_kernels", {}).values()}
    last: Report = kept[-1]
    return replace(last, failed=tuple((what, why) for what, why in FAILED.items() if what.split()[0] in keys))
