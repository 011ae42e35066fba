"""What GATEC_DEBUG prints and GATEC_DUMP writes: decisions, and the code of every rewritten module, pass by pass."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable

from torch import nn

from gatec import settings
from gatec.capture import unit_of
from gatec.program import Edit

_NUMBER = itertools.count()


def text(model: nn.Module) -> str:
    """The forward of every rewritten module as Python, under its module path; diffable, nothing in it changes by itself."""
    parts = []
    for path, module in model.named_modules():
        unit = unit_of(module)
        for captured in (c for graphs in (unit.graphs.values() if unit else ()) for c in graphs):
            parts.append(f"# {path or '(model)'}: {type(module).__name__}\n{captured.source.strip()}")
    return "\n\n".join(parts) + "\n"


def note(name: str, model: nn.Module, edits: Iterable[Edit]) -> None:
    """Say what one pass did, as far as the settings ask for it."""
    shown = [e for e in edits if (3 if e.verdict == "near" else 1) <= settings.DEBUG]
    for edit in shown:
        sys.stderr.write(f"{edit}\n")
    if settings.DEBUG >= 2:
        sys.stderr.write(text(model))
    if settings.DUMP is not None:
        settings.DUMP.mkdir(parents=True, exist_ok=True)
        (settings.DUMP / f"{next(_NUMBER):02}-{name}.txt").write_text(text(model))
