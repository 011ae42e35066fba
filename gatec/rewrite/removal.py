"""Edits taken out of a unit again, with what they added."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from gatec.capture import Unit
from gatec.capture.unit import uninstall
from gatec.rewrite.undo import Undo


def take_out(module: nn.Module, unit: Unit, edits: Iterable[Any], steps: Undo) -> None:
    """The unit without `edits` and what they added; a unit without edits is the user's module again."""
    gone = list(edits)
    steps.append(partial(_restore, module, type(module), unit, dict(vars(unit))))
    unit.added = dict(unit.added)
    for edit in reversed(gone):
        for path in edit.added.values():
            _delete(module, path, steps)
            unit.added.pop(path, None)
    unit.rewrites = [e for e in unit.rewrites if not _among(e, gone)]
    unit.outer = [e for e in unit.outer if not _among(e, gone)]
    unit.graphs, unit.shells = {}, {}
    if not unit.edits:
        uninstall(module)


def _among(edit: Any, edits: list[Any]) -> bool:
    return any(e is edit for e in edits)


def _delete(module: nn.Module, path: str, steps: Undo) -> None:
    """Delete what was added; undone, it stands where it stood among its like."""
    owner_path, _, name = path.rpartition(".")
    owner = module.get_submodule(owner_path)
    for held in (owner._modules, owner._parameters, owner._buffers):
        if name in held:
            steps.append(partial(_refill, held, dict(held)))
    delattr(owner, name)


def _refill(held: dict[str, Any], before: dict[str, Any]) -> None:
    held.clear()
    held.update(before)


def _restore(module: nn.Module, kind: type[nn.Module], unit: Unit, before: dict[str, Any]) -> None:
    vars(unit).update(before)
    module.__dict__["_gatec"] = unit
    module.__class__ = kind
