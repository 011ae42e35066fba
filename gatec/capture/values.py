"""Proxies that carry example values, and where in the user's code they are asked."""

from __future__ import annotations

import contextlib
import operator
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from gatec.capture.guards import INPLACE
from gatec.capture.structure import PLAIN
from gatec.errors import Refused

CONCRETE = {"dtype", "device", "ndim", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested",
            "requires_grad", "names", "is_leaf", "is_mkldnn", "is_cpu", "is_mps", "is_xpu", "itemsize"}  # fmt: skip
CONCRETE_CALLS = {"dim", "ndimension", "is_floating_point", "is_complex", "element_size", "is_contiguous",
                  "get_device", "is_signed", "is_conj", "is_neg", "is_inference"}  # fmt: skip
DATA = {"item", "tolist", "numpy", "nonzero", "unique", "backward", "__array__", "equal", "allclose"}


class Value(fx.Proxy):
    """A proxy that knows an example of its value."""

    example: Any
    tracer: Any  # the Tracer of capture/tracer.py, which stands below this file

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        example = self.example
        if not isinstance(example, Tensor):
            found = getattr(example, name)
            return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)
        if name in CONCRETE:
            return getattr(example, name)
        if name in DATA:
            raise Refused(f"its result depends on the values of a tensor (.{name})")
        with self.tracer.quiet():
            found = getattr(example, name)
        return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.example, Tensor):
            return iter([self[i] for i in range(len(self))])
        if isinstance(self.example, dict):
            return iter(self.example)
        return iter([self[i] for i in range(len(self.example))])

    def __len__(self) -> int:
        if isinstance(self.example, Tensor):
            return int(self.tracer.decide(self.size(0)))
        return len(self.example)

    def __bool__(self) -> bool:
        return bool(self.tracer.decide(self))

    def __int__(self) -> int:
        return int(self.tracer.decide(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self))

    def __float__(self) -> float:
        return float(self.tracer.decide(self))

    def __hash__(self) -> int:
        return hash(self.tracer.decide(self)) if isinstance(self.example, PLAIN) else id(self)

    def __contains__(self, item: Any) -> bool:
        return any(bool(item == x) for x in self)

    def keys(self) -> Any:
        return self.example.keys()

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.call(operator.setitem, self, index, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "example"):
            raise Refused(f"it sets the attribute {name} of a tensor")
        object.__setattr__(self, name, value)

    def __invert__(self) -> Any:
        return self.tracer.call(operator.invert, self)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.call(operator.getitem, self, index)

    def __deepcopy__(self, memo: Any) -> Value:
        return self


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def method(self: Value, other: Any) -> Any:
        return self.tracer.call(function, self, other)

    return method


for _name in INPLACE:
    setattr(Value, f"__{_name}__", _in_place(_name))


class Opaque(Value):
    """An object that the graph hands on without looking into it, such as a KV cache."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Refused(f"it reads .{name} of an object of type {type(self.example).__name__}")

    def __bool__(self) -> bool:
        raise Refused(f"it asks an object of type {type(self.example).__name__} whether it is true")

    __len__ = __int__ = __index__ = __float__ = __iter__ = __bool__  # type: ignore[assignment]
    __hash__ = object.__hash__


class _Method:
    def __init__(self, owner: Value, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in CONCRETE_CALLS:
            return getattr(self.owner.example, self.name)(*args, **kwargs)
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


class Apply:
    """A torch.autograd.Function as a graph leaf, so that its own backward survives."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__, self.__module__ = function.__name__, function.__module__

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)


def where(trail: types.TracebackType | None = None) -> str:
    """file:line of the user's code that is being traced, or that raised."""
    found, frame = "", sys._getframe(1) if trail is None else None
    while trail is not None:
        found = _line(trail.tb_frame, trail.tb_lineno) or found
        trail = trail.tb_next
    while frame is not None and not found:
        found, frame = _line(frame, frame.f_lineno), frame.f_back
    return found


def _line(frame: types.FrameType, number: int) -> str:
    file = frame.f_code.co_filename
    if file.startswith(OURS):
        return ""
    return f"{file.rpartition('site-packages/')[2]}:{number}"


OURS = (
    str(Path(__file__).parents[1]) + "/",
    str(Path(torch.__file__).parent) + "/",
    str(Path(mock.__file__).parent) + "/",
    contextlib.__file__,
    "<",
)
