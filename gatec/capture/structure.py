"""Arguments as a flat list of leaves and a key that says everything else about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

PLAIN = (int, float, bool, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout,
         torch.memory_format, slice, range, Enum, type, torch.Size)  # fmt: skip


@dataclass
class Flat:
    """The tensors and unknown objects of a call, and the key of the rest: structure, constants, rank, dtype, device."""

    leaves: list[Any]
    key: tuple[Any, ...]


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flat:
    leaves: list[Any] = []
    key: list[Any] = []
    _walk(args, leaves, key)
    _walk(kwargs, leaves, key)
    return Flat(leaves, tuple(key))


def _walk(value: Any, leaves: list[Any], key: list[Any]) -> None:
    if isinstance(value, Tensor):
        leaves.append(value)
        key.append((value.ndim, value.dtype, value.device.type))
    elif isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        key.append((type(value), len(value)))
        for item in value:
            _walk(item, leaves, key)
    elif isinstance(value, dict):
        key.append((type(value), tuple(value)))
        for item in value.values():
            _walk(item, leaves, key)
    elif isinstance(value, (float, slice, range)):
        key.append(repr(value))
    elif isinstance(value, PLAIN):
        key.append(value)
    else:
        leaves.append(value)
        key.append(type(value))


def frozen(value: Any) -> Any:
    """A value as part of a key: plain values by value, other objects by identity."""
    if isinstance(value, (tuple, list)):
        return tuple(map(frozen, value))
    return value if isinstance(value, (int, float, str, bool, type(None), torch.dtype)) else id(value)


def rebuild(value: Any, leaves: Iterator[Any]) -> Any:
    """`value` with its leaves, in the order of `flatten`, taken from `leaves`."""
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        items = [rebuild(v, leaves) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        named = {k: rebuild(v, leaves) for k, v in value.items()}
        return named if type(value) is dict else type(value)(**named)
    return value if isinstance(value, PLAIN) else next(leaves)
