"""tune(): every choice of a model's fused regions, made ahead of time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gatec.capture import untouched
from gatec.dispatch import CHOOSER, Answer, Budget
from gatec.dispatch.table import FORMAT, entry
from gatec.errors import GatecError
from gatec.fusing import fuse
from gatec.pipeline import prepare
from gatec.program import cloned

NOTHING = "no region of {} is an op on this device: there is nothing to choose"


@dataclass(frozen=True)
class Line:
    """One region in one direction: what runs from now on, and milliseconds of the fastest way and of eager."""

    region: str
    side: str
    operands: tuple[str, ...]
    way: str
    why: str
    ours: float | None = None
    eager: float | None = None


@dataclass(frozen=True)
class Tuning:
    """What `gatec.tune` found; `entries` is a table that may lie in gatec/tables."""

    model: str
    lines: tuple[Line, ...]
    entries: dict[str, Any]

    def __str__(self) -> str:
        if not self.lines:
            return NOTHING.format(self.model)
        rows = [(n.region, n.side, n.way or "eager", _ms(n.ours), _ms(n.eager), n.why) for n in self.lines]
        head = ("region", "side", "runs", "ms", "eager ms", "why")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (head, *rows))

    def json(self) -> str:
        lines = [asdict(line) for line in self.lines]
        return json.dumps({"format": FORMAT, "model": self.model, "lines": lines, "entries": self.entries}, indent=1)


def tune(model: nn.Module, inputs: Any = None, *, budget: float = 60.0, inductor: bool = False) -> Tuning:
    """Fuse a copy of `model`, verify and measure the ways of each region on these inputs, and keep the answers on disk.

    budget    seconds that measuring may take. What it does not reach stays unknown, and runs eager.
    inductor  torch.compile of each region without products is a way too, here and in processes with GATEC_INDUCTOR=1.

    Afterwards a process that meets the same regions, shapes, device and versions chooses without measuring.
    """
    if not budget > 0:
        raise GatecError("a budget in seconds", found=repr(budget), hint="gatec.tune(model, inputs, budget=60)")
    CHOOSER.inductor |= inductor
    fused = fuse(model, inputs)
    program = prepare(fused, inputs)
    with CHOOSER.waiting(Budget(key=1000 * budget, total=1000 * budget)) as answers:
        for trained in (False, True):
            args, kwargs = cloned((program.args, program.kwargs))
            with untouched(fused), torch.set_grad_enabled(trained):
                fused(*args, **kwargs)
    return _tuning(type(model).__name__, answers)


def _tuning(name: str, answers: Sequence[Answer]) -> Tuning:
    found = {answer.key.digest: answer for answer in answers}
    entries = {digest: entry(a.key, a.record) for digest, a in found.items()}
    return Tuning(name, tuple(map(_line, found.values())), entries)


def _line(answer: Answer) -> Line:
    record, operands = answer.record, tuple(answer.key.fields["operands"])
    fastest = min(record.times, key=lambda name: record.times[name][0] / record.times[name][2], default="")
    best = record.times.get(record.way or fastest)
    region = answer.side.region.rpartition("_")[0]
    shown = (best[0], best[2]) if best else (None, None)
    return Line(region, answer.side.name, operands, record.way, record.why, *shown)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
