"""Arguments as a flat list of leaves and a key that says everything else about them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
PLAIN = (int, float, bool, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
         torch.memory_format, slice, range, Enum, type, torch.Size, *FUNCTIONS)  # fmt: skip


@dataclass
class Flat:
    """The tensors and unknown objects of a call, and the key of the rest: structure, constants, rank, dtype, device."""

    leaves: list[Any]
    key: tuple[Any, ...]


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any], numbers: bool = False) -> Flat:
    """With `numbers` int and float arguments are leaves too, so that one graph serves them all."""
    leaves: list[Any] = []
    key: list[Any] = []
    _walk(args, leaves, key, numbers)
    _walk(kwargs, leaves, key, numbers)
    if len(leaves) > 1 and len({id(x) for x in leaves}) < len(leaves):
        key.append(twins(leaves))
    return Flat(leaves, tuple(key))


def twins(leaves: list[Any]) -> tuple[int, ...]:
    """For each leaf the first one that is the same object: a forward may ask whether `query is key`."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(x), i) for i, x in enumerate(leaves))


def _walk(value: Any, leaves: list[Any], key: list[Any], numbers: bool) -> None:
    if isinstance(value, Tensor):
        leaves.append(value)
        key.append(_form(value))
    elif numbers and type(value) in (int, float):
        leaves.append(value)
        key.append(type(value))
    elif isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        key.append((type(value), len(value)))
        for item in value:
            _walk(item, leaves, key, numbers)
    elif isinstance(value, dict):
        key.append((type(value), tuple(value)))
        for item in value.values():
            _walk(item, leaves, key, numbers)
    elif isinstance(value, float):
        key.append((float, repr(value)))
    elif isinstance(value, (slice, range)):
        key.append(repr(value))
    elif isinstance(value, PLAIN):
        key.append((type(value), value) if isinstance(value, (bool, int)) else value)
    else:
        leaves.append(value)
        key.append(type(value))


def _form(tensor: Tensor) -> Any:
    form = tensor.ndim, tensor.dtype, tensor.device.type
    if tensor.layout is torch.strided and not foreign(tensor):
        return form
    return *form, tensor.layout, type(tensor) if foreign(tensor) else None


def foreign(tensor: Tensor) -> bool:
    """A tensor of a class of somebody's own, that may do anything in any operation."""
    return type(tensor) not in (Tensor, nn.Parameter) and not type(tensor).__module__.startswith("torch")


CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
SMALL = 64  # items of a container that is compared by its content


def frozen(value: Any) -> Any:
    """A value as part of a key: plain values and small containers by value, tensors by form, other objects by identity."""
    if isinstance(value, (bool, int, float)):
        return type(value), value
    if isinstance(value, (str, type(None), torch.dtype, torch.device, Enum)):
        return value
    if isinstance(value, Tensor):
        return _form(value)
    if isinstance(value, (tuple, list)) and len(value) <= SMALL:
        return type(value), tuple(map(frozen, value))
    if isinstance(value, dict) and len(value) <= SMALL:
        return type(value), tuple((k if isinstance(k, PLAIN) else id(k), frozen(v)) for k, v in value.items())
    if isinstance(value, (set, frozenset)) and len(value) <= SMALL:
        return frozenset(map(frozen, value))
    if isinstance(value, types.MethodType):
        return id(value.__func__), id(value.__self__)
    if isinstance(value, nn.Module):
        return type(value), tuple(value._modules) if isinstance(value, CONTAINERS) else ()
    return id(value)


MISSING = object()


def attribute(module: nn.Module, child: str, name: str) -> Any:
    """What a forward of `module` finds under `name`, such as "width" or "config.width", of the child at `child`."""
    value: Any = module
    try:
        for step in child.split(".") if child else ():
            value = value._modules[step]
        for step in name.split("."):
            value = getattr(value, step)
    except (AttributeError, KeyError):
        return MISSING
    return value


def rebuild(value: Any, leaves: Iterator[Any], numbers: bool = False) -> Any:
    """`value` with its leaves, in the order of `flatten`, taken from `leaves`."""
    if isinstance(value, Tensor) or (numbers and type(value) in (int, float)):
        return next(leaves)
    if isinstance(value, (tuple, list)) and type(value) is not torch.Size:
        items = [rebuild(v, leaves, numbers) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        named = {k: rebuild(v, leaves, numbers) for k, v in value.items()}
        return named if type(value) is dict else type(value)(**named)
    return value if isinstance(value, PLAIN) else next(leaves)
