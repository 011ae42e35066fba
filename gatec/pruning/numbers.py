"""The numbers that a module keeps, and what they may be when slots are gone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from gatec.pruning.sizes import sizes

Values = tuple[tuple[str, Any], ...]


def assignments(module: nn.Module, changes: Mapping[int, set[int]]) -> Iterator[Values]:
    """Values for the module's numbers that were sizes of axes, those first that follow all of them.

    changes    what axes of each size have become inside of the module
    """
    own = list(_numbers(vars(module), changes, set(sizes(module))))
    yield from _all(own)
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "__dict__"):
        yield from _all([*own, *((f"config.{n}", v) for n, v in _numbers(vars(config), changes, set()))])


def _all(choices: list[tuple[str, list[Any]]]) -> Iterator[Values]:
    for chosen in itertools.product(*(values for _, values in choices)):
        yield tuple((name, v) for (name, values), v in zip(choices, chosen, strict=True) if v != values[-1])


def _numbers(
    table: Mapping[str, Any], changes: Mapping[int, set[int]], fixed: set[str]
) -> Iterator[tuple[str, list[Any]]]:
    """Names of numbers with the values that they may have now, and that which they had last."""
    for name, value in table.items():
        if name in fixed or name.startswith("_"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and _news(value, changes):
            yield name, [*_news(value, changes), value]
        elif (
            isinstance(value, (tuple, list))
            and value
            and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        ):
            made = [(_news(v, changes) or [v])[0] for v in value]
            if made != list(value):
                yield name, [type(value)(made) if type(value) in (tuple, list) else tuple(made), value]


def _news(value: int, changes: Mapping[int, set[int]]) -> list[int]:
    return sorted(changes.get(value, set()) - {value})
