"""What conversion put into a model beside its own weights, as data that another process can build it from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gatec.capture import unit_of
from gatec.errors import GatecError
from gatec.match.terms import join

Parts = tuple[tuple[str, str, str, dict[str, Any], tuple[str, ...]], ...]


def additions(model: nn.Module) -> tuple[dict[str, Parts], dict[str, Tensor]]:
    """By path, the modules of what was added (none for a tensor), and every tensor of it."""
    added: dict[str, Parts] = {}
    tensors: dict[str, Tensor] = {}
    for path in sorted(set(_paths(model))):
        owner, _, name = path.rpartition(".")
        value = getattr(model.get_submodule(owner), name)
        if isinstance(value, nn.Module):
            added[path] = tuple(_part(path, inner, module) for inner, module in value.named_modules())
            held = (*value.named_parameters(), *value.named_buffers())
            tensors.update({join(path, n): _own(t) for n, t in held})
        else:
            added[path], tensors[path] = (), _own(value)
    return added, tensors


def _paths(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        unit = unit_of(module)
        yield from (join(path, p) for edit in (unit.edits if unit else ()) for p in edit.added.values())


def _own(value: Tensor) -> Tensor:
    """On the CPU, with no more memory than it needs."""
    copied = value.detach().cpu().clone()
    return nn.Parameter(copied, value.requires_grad) if isinstance(value, nn.Parameter) else copied


def _part(path: str, name: str, module: nn.Module) -> tuple[str, str, str, dict[str, Any], tuple[str, ...]]:
    kind, settings = type(module), {n: v for n, v in vars(module).items() if not n.startswith("_") and n != "training"}
    odd = next((n for n, v in settings.items() if not _literal(v)), "")
    if odd or kind.__module__.split(".")[0] in ("gatec", "__main__"):
        raise GatecError(
            "additions that can be built without gatec", found=f"a {kind.__name__}", where=join(path, name)
        )
    empty = tuple(n for n, p in module._parameters.items() if p is None)
    return name, kind.__module__, kind.__qualname__, settings, empty


def _literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
