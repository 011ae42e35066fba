"""The numbers that a module keeps, and what they may be when slots are gone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from gatec.pruning.sizes import sizes

Values = tuple[tuple[str, Any], ...]
OWN = frozenset(vars(nn.Module()))  # what every module keeps for torch
MOST = 12  # values that one list or table of numbers is tried with


def assignments(module: nn.Module, changes: Mapping[int, set[int]]) -> Iterator[Values]:
    """Values for the module's numbers that were sizes of axes, those first that follow all of them.

    changes    what axes of each size have become inside of the module
    """
    fixed = {*sizes(module), *(n for n in vars(module) if n in OWN or n.startswith("_gatec"))}
    own = list(_numbers(vars(module), changes, fixed))
    yield from _all(own)
    config = vars(module).get("config")
    if config is not None and hasattr(config, "__dict__"):
        hidden = {n for n in vars(config) if n.startswith("_")}
        yield from _all([*own, *((f"config.{n}", v) for n, v in _numbers(vars(config), changes, hidden))])


def _all(choices: list[tuple[str, list[Any]]]) -> Iterator[Values]:
    for chosen in itertools.product(*(values for _, values in choices)):
        yield tuple((name, v) for (name, values), v in zip(choices, chosen, strict=True) if v != values[-1])


def _numbers(
    table: Mapping[str, Any], changes: Mapping[int, set[int]], fixed: set[str]
) -> Iterator[tuple[str, list[Any]]]:
    """Names of numbers, and of what holds numbers, with the values that they may have now, and that which they had last."""
    for name, value in table.items():
        if name not in fixed and len(found := list(_choices(value, changes))) > 1:
            yield name, found


def _choices(value: Any, changes: Mapping[int, set[int]]) -> Iterator[Any]:
    """What a value may be now: numbers that were sizes, and lists and tables of them; as it was last."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield from sorted(changes.get(value, set()) - {value})
    elif (isinstance(value, (tuple, list)) or type(value) is dict) and len(value) <= MOST:
        items = value.values() if isinstance(value, dict) else value
        inside = [list(_choices(v, changes)) for v in items]
        for made in itertools.islice(itertools.product(*inside), min(MOST, math.prod(map(len, inside)) - 1)):
            yield _like(value, made)
    yield value


def _like(value: Any, items: tuple[Any, ...]) -> Any:
    if isinstance(value, dict):
        return dict(zip(value, items, strict=True))
    return list(items) if type(value) is list else items
