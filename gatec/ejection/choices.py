"""Which functions of an ejected package run their kernels: those that were measured faster for this device and these sizes.

Answers stand in choices.json, for the device, the versions and the sizes that they were measured with. Where there is none
the eager form runs, and WHY says what was missing; `unknown = "kernel"` runs the kernel there instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatec.dispatch.forms import Form, described, exact
from gatec.dispatch.identity import named, versions

FILE = Path(__file__).with_name("choices.json")
REMEMBERED = 4096
WHY: dict[str, str] = {}  # function and side, and why its kernel does not run
unknown = "eager"
_KNOWN: dict[Any, bool] = {}


def chosen(name: str, operands: Sequence[Tensor]) -> bool:
    """Whether the kernels of a function run on these operands: both of them where it trains."""
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    key = (name, trains, unknown, exact(operands))
    if key not in _KNOWN:
        if len(_KNOWN) >= REMEMBERED:
            _KNOWN.clear()
        _KNOWN[key] = all(_faster(name, side, operands) for side in ("forward", "backward")[: 1 + trains])
    return _KNOWN[key]


def _faster(name: str, side: str, operands: Sequence[Tensor]) -> bool:
    way, why = answer(name, side, operands)
    if way or (way is None and unknown == "kernel"):
        return True
    WHY[f"{name} {side}"] = why
    return False


def answer(name: str, side: str, operands: Sequence[Tensor]) -> tuple[str | None, str]:
    """The way and the reason that were measured; no way where nothing was."""
    entries, wrong = read(FILE)
    own = [e for e in entries.get(name, ()) if e.get("side") == side]
    if wrong or not own:
        return None, wrong or "it was not measured: gatec eject --tune does that"
    here = identity(operands[0].device)
    now = [e for e in own if e.get("identity") == here]
    forms = described([Form.bare(x) for x in operands])
    found = next((e for e in now if e.get("operands") == forms), None)
    if found is not None:
        return str(found.get("way", "")), str(found.get("why", ""))
    if not now:
        return None, f"it was measured for {_words(own[0].get('identity'))}, not for {_words(here)}"
    return None, f"it was measured for other sizes than {', '.join(forms)}"


def identity(device: torch.device) -> dict[str, str]:
    return {**named(device), **versions()}


def read(file: Path) -> tuple[dict[str, Any], str]:
    """The answers by function, or why there are none."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["entries"]
        lists = isinstance(entries, dict) and all(isinstance(e, list) for e in entries.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        return {}, f"{file.name} cannot be read: {type(e).__name__}"
    if not lists or not all(isinstance(e, dict) for own in entries.values() for e in own):
        return {}, f"{file.name} holds something else"
    return entries, ""


def _words(fields: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(fields.items())) if isinstance(fields, dict) else "nothing"
