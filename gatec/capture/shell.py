"""A module seen from outside: the values of its call, one call of its own forward, and its result.

The graph of a module that is not looked into. It holds for every call with the same argument structure, whatever the
forward does: constants, caches and results of any class are passed on as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.capture.record import Call

OWN = "_gatec_own"  # the method of a rewritten class that runs the module as it is inside


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


def shell(forward: Callable[..., Any], call: Call) -> fx.Graph:
    """placeholders -> own forward -> its first tensor -> the same result with that tensor in its place."""
    graph, mode = fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True)

    def leaf(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(leaf(v) for v in value)
        if type(value) is dict:
            return {k: leaf(v) for k, v in value.items()}
        return _known(graph.placeholder(f"x{len(graph.nodes)}"), value, mode)

    args, kwargs = tuple(leaf(a) for a in call.args), {k: leaf(v) for k, v in call.kwargs.items()}
    own = graph.call_module(OWN, args, kwargs)
    value = _known(graph.call_function(first, (own,)), first(call.output), mode)
    graph.output(graph.call_function(with_first, (own, value)))
    return graph


def door(forward: Callable[..., Any], graph: fx.Graph, side: str) -> fx.Node | None:
    """The node of a shell that holds the module's first tensor argument ("in") or the first tensor it returns ("out")."""
    own: fx.Node = next(n for n in graph.nodes if n.target == OWN)
    if side == "out":
        return next(n for n in own.users if n.target is first)
    return next((n for n in taken(forward, own) if "val" in n.meta), None)


def _known(node: fx.Node, value: Any, mode: FakeTensorMode) -> fx.Node:
    """The node with an example of its value, without data, where it is a tensor."""
    if isinstance(value, Tensor):
        with mode:
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return node


def taken(forward: Callable[..., Any], call: fx.Node) -> list[fx.Node]:
    """The nodes that a call of a module takes, in the order of its forward's parameters."""
    order = {name: i for i, name in enumerate(inspect.signature(forward).parameters)}
    kwargs = sorted(call.kwargs, key=lambda k: order.get(k, len(order)))
    found: list[fx.Node] = []
    fx.node.map_arg((*call.args, *(call.kwargs[k] for k in kwargs)), found.append)
    return found


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
