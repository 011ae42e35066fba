"""The arguments and the result of a call from outside: what plain containers hold, and the first tensor of a result."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor


def spread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Everything that plain tuples, lists and dicts hold, constants included, and the structure around it."""
    leaves: list[Any] = []
    key: list[Any] = []
    _walk(args, leaves, key)
    _walk(kwargs, leaves, key)
    return leaves, tuple(key)


def _walk(value: Any, leaves: list[Any], key: list[Any]) -> None:
    kind = type(value)
    if kind is tuple or kind is list:
        key.append((kind, len(value)))
        for item in value:
            _walk(item, leaves, key)
    elif kind is dict:
        key.append((kind, tuple(value)))
        for item in value.values():
            _walk(item, leaves, key)
    else:
        leaves.append(value)
        key.append(kind if not isinstance(value, Tensor) else Tensor)


def first(result: Any) -> Any:
    """The first tensor in what a module returned: itself, or the first of a tuple, a dict or a dataclass."""
    if isinstance(result, Tensor):
        return result
    for item in _parts(result):
        found = first(item)
        if found is not None:
            return found
    return None


def _parts(result: Any) -> list[Any]:
    if isinstance(result, dict):
        return list(result.values())
    if isinstance(result, (tuple, list)):
        return list(result)
    return [getattr(result, f.name) for f in dataclasses.fields(result)] if _record(result) else []


def _record(result: Any) -> bool:
    return dataclasses.is_dataclass(result) and not isinstance(result, type)


def with_first(result: Any, value: Any) -> Any:
    """`result` with its first tensor, wherever it stands in it, replaced by `value`."""
    old = first(result)
    return result if old is value else _exchanged(result, old, value)


def _exchanged(result: Any, old: Any, new: Any) -> Any:
    if result is old:
        return new
    if isinstance(result, dict):
        changed = copy.copy(result)
        for key, item in result.items():
            changed[key] = _exchanged(item, old, new)
        return changed
    if isinstance(result, (tuple, list)):
        items = [_exchanged(item, old, new) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    if _record(result):
        fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return dataclasses.replace(result, **{k: _exchanged(v, old, new) for k, v in fields.items()})
    return result
