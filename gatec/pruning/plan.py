"""What removing slots does to a model, as data: which positions are kept, which numbers and norms change."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pruning.folds import Fold
from gatec.pruning.norms import narrowed
from gatec.pruning.sizes import resized
from gatec.rewrite import Undo

Owners = dict[int, list[tuple[nn.Module, str]]]


@dataclass
class Plan:
    """`kept` positions by tensor and dimension; `numbers` by module path and attribute; `norms` by module path.

    `folds` change values only, which a checkpoint has already: they are not part of a recipe.
    """

    kept: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    norms: dict[str, dict[str, Any]] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As JSON: equal lists of positions once."""
        lists: dict[tuple[int, ...], int] = {}
        cuts = {
            name: {str(d): lists.setdefault(tuple(at), len(lists)) for d, at in dims.items()}
            for name, dims in self.kept.items()
        }
        return {"positions": [list(at) for at in lists], "cuts": cuts, "numbers": self.numbers, "norms": self.norms}

    @classmethod
    def of(cls, data: Any) -> Plan:
        try:
            lists = [[int(n) for n in at] for at in data["positions"]]
            kept = {str(name): {int(d): lists[int(n)] for d, n in dims.items()} for name, dims in data["cuts"].items()}
            return cls(kept, dict(data["numbers"]), dict(data["norms"]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
            raise GatecError("a plan of what was removed", found=f"{type(e).__name__}: {e}"[:120]) from None


def carried_out(model: nn.Module, plan: Plan, undo: Undo) -> None:
    """Remove, in place, what a plan removes."""
    held = owners(model)
    for name, dims in plan.kept.items():
        _cut(_tensor(model, name), name, dims, held, undo)
    for path in {name.rpartition(".")[0] for name in plan.kept}:
        resized(model.get_submodule(path), undo)
    for path, values in plan.numbers.items():
        for name, value in values.items():
            number(model.get_submodule(path), name, value, undo)
    for path, how in plan.norms.items():
        narrowed(model.get_submodule(path), how, undo)
    for fold in plan.folds:
        fold.take(model, undo)


def number(module: nn.Module, name: str, value: Any, undo: Undo) -> None:
    """Set an attribute of a module, or one of its config, which becomes the module's own."""
    owner: Any = module
    if name.startswith("config."):
        name = name.removeprefix("config.")
        undo.append(partial(setattr, module, "config", module.config))
        owner = copy.copy(module.config)
        module.config = owner
    if not hasattr(owner, name):
        raise GatecError("an attribute whose number changes", found=f"no {name} in {type(module).__name__}")
    old = getattr(owner, name)
    undo.append(partial(setattr, owner, name, old))
    setattr(owner, name, _in_form(value, old))


def _in_form(value: Any, old: Any) -> Any:
    """A value in the form of that before it: JSON has no tuples."""
    if isinstance(value, dict):
        return {k: _in_form(v, old.get(k) if isinstance(old, dict) else None) for k, v in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    before = old if isinstance(old, (list, tuple)) and len(old) == len(value) else [None] * len(value)
    made = [_in_form(v, o) for v, o in zip(value, before, strict=True)]
    return made if type(old) is list else tuple(made)


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    if found is None:
        raise GatecError("a tensor that slots are removed from", found=f"no {name} in {type(model).__name__}")
    return found


def _cut(old: Tensor, name: str, dims: dict[int, list[int]], held: Owners, undo: Undo) -> None:
    """Give a parameter or buffer, under all of its names, the positions that are kept."""
    new = old.detach()
    for dim, at in dims.items():
        if not at or max(at) >= new.shape[dim]:
            raise GatecError(
                f"a dimension of {name} with more than {max(at, default=0)} positions", found=str(tuple(old.shape))
            )
        new = new.index_select(dim, torch.tensor(at, device=new.device))
    made = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module, leaf in held[id(old)]:
        table: Any = module._parameters if leaf in module._parameters else module._buffers
        undo.append(partial(table.__setitem__, leaf, old))
        table[leaf] = made


def owners(model: nn.Module) -> Owners:
    """The modules that hold each parameter and buffer, by its id, with the name that it has there."""
    found: Owners = {}
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                found.setdefault(id(value), []).append((module, name))
    return found
