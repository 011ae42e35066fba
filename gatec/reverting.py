"""revert(): the user's own model again, with the values that its weights have now."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from gatec.capture import unit_of
from gatec.errors import GatecError, Refused
from gatec.history import forget, history
from gatec.program import named_parameters
from gatec.rewrite import Rewrite, put_back, take_out
from gatec.shrink import HIDDEN, named, site_of
from gatec.verify import copied
from gatec.widening import narrow

Model = TypeVar("Model", bound=nn.Module)


def revert(model: Model) -> Model:
    """A copy of `model` without anything that gatec put in: its own classes, its own names, to the bit what it was.

    After training it has the trained weights, in their original order. What gates have learned is gone with them
    (`gatec.merge` folds it into the weights). Raises GatecError where a pass cannot be undone, in words.
    """
    steps = history(model)
    cut = [(step.get("kind", HIDDEN), site) for step in steps for site in step.get("compact", ())]
    for kind, site in cut[:1]:
        raise GatecError(f"a model with all its {kind}", found=f"compact has removed {kind}", where=site or "(model)",
                         hint="keep the model from before gatec.compact")  # fmt: skip
    if not any(unit_of(m) for m in model.modules()):
        raise GatecError(
            "a model that gatec has rewritten", found=type(model).__name__, hint='gatec.convert(model, "glu")'
        )
    model = copied(model)
    names = named_parameters(model)
    units = [(p, m, u) for p, m in model.named_modules() if (u := unit_of(m))]
    for path, module, unit in reversed(units):
        for edit in reversed(unit.edits):
            _undone(model, path, edit, names)
        take_out(module, unit, unit.edits, [])
    for module in model.modules():
        forget(module)
    return model


def _undone(model: nn.Module, path: str, edit: Any, names: dict[int, list[str]]) -> None:
    """Move the weights back that the birth of an edit has moved, and take copies away."""
    if not isinstance(edit, Rewrite):
        return
    if edit.gate.birth and edit.gate.moved is None:
        raise _stays(path, edit, "its birth may have changed weights, and it does not say how (Gate(moved=...))")
    try:
        site = site_of(model, path, edit, names)
        order = edit.moved(site)
        for name in edit.linears if order is not None else ():
            site.movable(name)
        narrow(model.get_submodule(path), edit.layers, edit.wide)
    except Refused as e:
        raise _stays(path, edit, str(e)) from None
    if order is not None:
        put_back(model.get_submodule(path), edit.linears, order)


def _stays(path: str, edit: Rewrite, why: str) -> GatecError:
    return GatecError(f"a pass that can be taken out again, as {edit.name} cannot", found=why, where=named(path, edit) or "(model)",
                      hint="keep the model from before the conversion")  # fmt: skip
