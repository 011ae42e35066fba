"""Configs that say how many blocks there are and of what type each is, after some of them are gone."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gatec.blocks.numbers import COUNT
from gatec.capture import unit_of
from gatec.capture.spies import refill
from gatec.match.terms import below
from gatec.rewrite import Undo

EACH = re.compile(r"layer|block|type|rope|pattern|window|freq|interval")  # a value for each block
FIRST = "first_k_dense_replace", "num_dense_layers", "max_window_layers"  # how many of the first blocks
Field = tuple[str, int | None]  # an attribute, and where in it if it is a list


def shortened(model: nn.Module, outer: str, size: int, gone: list[int], undo: Undo) -> None:
    """Tell every config above the chain at `outer`, which had `size` blocks, that those numbered in `gone` are gone."""
    for path, module, config in configs(model, outer):
        field = counts(module, config, below(path, outer) if path else outer, size)
        if field is not None:
            undo.append(partial(refill, vars(config), dict(vars(config))))
            vars(config).update(_without(vars(config), field, size, gone))


def configs(model: nn.Module, outer: str) -> Iterator[tuple[str, nn.Module, Any]]:
    """The configs of the modules that hold a chain, each with the topmost module that keeps it."""
    seen: set[int] = set()
    parts = outer.split(".")
    for depth in range(len(parts)):
        path = ".".join(parts[:depth])
        module = model.get_submodule(path)
        config = vars(module).get("config")
        if config is not None and hasattr(config, "__dict__") and id(config) not in seen:
            seen.add(id(config))
            yield path, module, config


def counts(module: nn.Module, config: Any, chain: str, size: int) -> Field | None:
    """The field of `config` that says how long the chain is: the one that makes a new module's chain shorter.

    Where no module can be built from the config alone, the one that has the right value, if it is the only one.
    """
    known = list(_candidates(vars(config), size))
    tried = {field: _length(module, config, chain, field, size) for field in known}
    sure = [field for field, length in tried.items() if length == size - 1]
    if not sure and all(length is None for length in tried.values()):
        sure = known
    return sure[0] if len(sure) == 1 else None


def _candidates(fields: dict[str, Any], size: int) -> Iterator[Field]:
    for name, value in fields.items():
        if not COUNT.search(name):
            continue
        if type(value) is int and value == size:
            yield name, None
        elif isinstance(value, (list, tuple)):
            yield from ((name, i) for i, v in enumerate(value) if type(v) is int and v == size)


def _length(module: nn.Module, config: Any, chain: str, field: Field, size: int) -> int | None:
    """How many blocks a module has that is built with one block less by `field`; None where it cannot be built."""
    shorter = copy.deepcopy(config)
    vars(shorter).update(_without(vars(shorter), field, size, [size - 1]))
    built = on_meta(module, shorter)
    try:
        return None if built is None else len(built.get_submodule(chain)._modules)
    except AttributeError:
        return None


def on_meta(module: nn.Module, config: Any) -> nn.Module | None:
    """A module of the same class from a config, without memory; None where its class asks for something else."""
    unit = unit_of(module)
    kind: Any = unit.original if unit else type(module)
    try:
        with torch.device("meta"), torch.random.fork_rng():
            built = kind(config)
    except Exception:  # of other people's constructors, which may raise anything about a config that they do not like
        return None
    return built if isinstance(built, nn.Module) else None


def _without(fields: dict[str, Any], field: Field, size: int, gone: list[int]) -> dict[str, Any]:
    """The fields of a config that change when blocks go."""
    name, index = field
    count = size - len(gone)
    new = {name: count if index is None else type(fields[name])(_replaced(fields[name], index, count))}
    if index is not None:
        return new
    for other, value in fields.items():
        if isinstance(value, (list, tuple)) and EACH.search(other):
            new[other] = type(value)(_listed(other, value, size, gone))
        elif other in FIRST and type(value) is int:
            new[other] = value - sum(g < value for g in gone)
    return new | _stages(fields, size, gone)


def _stages(fields: dict[str, Any], size: int, gone: list[int]) -> dict[str, Any]:
    """The outputs of a backbone, one before all blocks and one after each of them."""
    names, places = fields.get("stage_names"), fields.get("_out_indices")
    if not isinstance(names, list) or len(names) != size + 1 or not places:
        return {}
    left = names[: size + 1 - len(gone)]
    new = sorted({i - sum(g < i for g in gone) for i in places})
    return {"stage_names": left, "_out_indices": new, "_out_features": [left[i] for i in new]}


def _listed(name: str, value: Any, size: int, gone: list[int]) -> list[Any]:
    """A list with one entry for each block, or of the numbers of some blocks."""
    if _chosen(name, value, size):
        return [i - sum(g < i for g in gone) for i in value if i not in gone]
    return [v for i, v in enumerate(value) if i not in gone] if len(value) == size else list(value)


def _chosen(name: str, value: Any, size: int) -> bool:
    numbers = all(type(v) is int for v in value) and len(value) > 0
    return (
        name.endswith("_layers")
        and numbers
        and len(value) <= size
        and sorted(set(value)) == list(value)
        and value[-1] < size
    )


def _replaced(values: Any, index: int, value: Any) -> list[Any]:
    return [value if i == index else v for i, v in enumerate(values)]
