"""What was done to a model, kept with it: every decision with its reason, and how far the output moved."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gatec.dispatch import FAILED
from gatec.errors import GatecError
from gatec.program import Edit
from gatec.report.costs import Cost, costs
from gatec.report.narrowed import Narrowed
from gatec.report.page import page
from gatec.roofline import Price, machine

SCHEMA = "gatec.report/1"


@dataclass(frozen=True)
class Report:
    """`drift` is the relative change of the whole model's output on the example inputs, in the model's own dtype.

    `regions` are those that were fused, with what they cost in the recorded call and what they would as one kernel.
    `failed` are ways of their kernels that are never used on this device, and why: known once they were tried.
    `layers` is what each gate costs now; `losses` are (active share, loss) where `gatec.measure` was asked for them.
    `widths` are (group, kind, slots left, slots before) of a model that was narrowed, `narrowed` is what it and its layers
    cost before and after.
    """

    edits: tuple[Edit, ...]
    drift: float | None = None
    missed: tuple[tuple[str, str], ...] = ()
    regions: tuple[tuple[str, Price], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    model: str = ""
    layers: tuple[Cost, ...] = ()
    losses: tuple[tuple[float, float], ...] = ()
    widths: tuple[tuple[str, str, int, int], ...] = ()
    narrowed: tuple[Narrowed, ...] = ()

    def __str__(self) -> str:
        shown = [c for c in self.layers if c.share < 1 or c.seconds is not None]
        measured = [f"{share:.0%} of the experts active: loss {loss:.6g}" for share, loss in self.losses]
        return "\n".join(
            [*map(str, self.edits), *map(str, shown), *measured, *self.priced(), *self._failures(), self.last]
        )

    @property
    def last(self) -> str:
        """How many places were put, left and near, and how far the model's output moved."""
        counts = Counter(e.verdict for e in self.edits)
        tail = "  ".join(f"{counts[v]} {v}" for v in ("put", "left", "near") if counts[v])
        moved = f"  model drift {self.drift:.1e}" if self.drift is not None else ""
        return f"{tail}{moved}".strip()

    def data(self) -> dict[str, Any]:
        """The report as plain values; `schema` names their form and changes with it."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "drift": self.drift,
            "edits": [asdict(e) for e in self.edits],
            "missed": [{"path": path, "why": why} for path, why in self.missed],
            "layers": [c.data() for c in self.layers],
            "losses": [{"share": share, "loss": loss} for share, loss in self.losses],
            "widths": [
                {"group": name, "kind": kind, "left": left, "before": size} for name, kind, left, size in self.widths
            ],
            "narrowed": [n.data() for n in self.narrowed],
            "regions": [{"region": region, **asdict(price)} for region, price in self.regions],
            "failed": [{"way": what, "why": why} for what, why in self.failed],
        }

    def json(self) -> str:
        """Everything as JSON: numbers that are not finite as text."""
        return json.dumps(_finite(self.data()), indent=1) + "\n"

    def html(self) -> str:
        """A page with tables and pictures: one file, which loads nothing and runs nothing."""
        return page(self.model, self.edits, self.layers, self.losses, self.last, self.widths, self.narrowed)

    def page(self, path: str | Path) -> Path:
        """Write the page into a file."""
        file = Path(path)
        file.write_text(self.html(), encoding="ascii")
        return file

    def _failures(self) -> list[str]:
        return [f"{what} is not used: {why}" for what, why in self.failed]

    def priced(self, name: str = "h200") -> list[str]:
        """A line for each region: launches, bytes, intensity, expected time on a machine of `gatec.roofline`."""
        return [f"{region}: {p.text(machine(name))}" for region, p in self.regions]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
    failed = tuple((what, why) for what, why in FAILED.items() if what.split()[0] in keys)
    return replace(last, failed=failed, model=type(model).__name__, layers=costs(model))
