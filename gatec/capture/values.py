"""Proxies that carry example values, and where in the user's code they are asked."""

from __future__ import annotations

import builtins
import contextlib
import operator
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, fx, nn

from gatec.capture.guards import INPLACE
from gatec.capture.structure import PLAIN
from gatec.errors import Refused

CONCRETE = {"dtype", "device", "ndim", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested",
            "names", "is_mkldnn", "is_cpu", "is_mps", "is_xpu", "itemsize", "is_mtia", "is_sparse_csr"}  # fmt: skip
CONCRETE_CALLS = {"dim", "ndimension", "is_floating_point", "is_complex", "element_size", "get_device", "is_signed",
                  "is_inference"}  # fmt: skip
DATA = {"item", "tolist", "numpy", "nonzero", "unique", "unique_consecutive", "__array__", "equal", "allclose",
        "data_ptr"}  # fmt: skip
MANY = {"chunk", "unbind", "tensor_split", "unsafe_chunk", "getattr", "ask", "element"}  # gives as many as sizes say
GRAD = {"backward", "register_hook", "retain_grad", "grad", "grad_fn"}


class Value(fx.Proxy):
    """A proxy that knows an example of its value."""

    example: Any
    tracer: Any  # the Tracer of capture/tracer.py, which stands below this file

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        example = self.example
        if isinstance(example, Tensor):
            return self._of_tensor(example, name)
        if isinstance(example, dict) and name in ("keys", "values", "items"):
            return lambda: [{"keys": k, "values": self[k], "items": (k, self[k])}[name] for k in example]
        found = getattr(example, name)
        return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)

    @property
    def keys(self) -> Any:  # fx.Proxy has a method of that name
        return self.__getattr__("keys")

    def _of_tensor(self, example: Tensor, name: str) -> Any:
        if name in CONCRETE:
            self.tracer.told_form = self.tracer.told_form or self.node.op != "placeholder"
            return getattr(example, name)
        if name == "item":
            return lambda: self.tracer.decide(self).item()
        if name in DATA:
            raise Refused(f"its result depends on the values of a tensor (.{name})")
        if name in GRAD:
            raise Refused(f"it works on gradients itself (.{name})")
        if name in ("requires_grad", "is_leaf") and self.node.op not in ("placeholder", "get_attr"):
            return self.tracer.gradient(self, name)
        with self.tracer.quiet():
            found = getattr(example, name)
        return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.example, dict):
            return iter(self.example)
        return iter([self[i] for i in range(len(self))])

    def __len__(self) -> int:
        if isinstance(self.example, Tensor):
            return int(self.tracer.decide(self.size(0)))
        name = self.node.target if isinstance(self.node.target, str) else getattr(self.node.target, "__name__", "")
        many = type(self.example) in (tuple, list) and (name in MANY or name.startswith("split"))
        if many and not cuts_features(self.node, self.tracer.root):
            return int(self.tracer.decide(self.tracer.call(builtins.len, self)))
        return len(self.example)

    def __bool__(self) -> bool:
        return bool(self.tracer.decide(self))

    def __int__(self) -> int:
        return int(self.tracer.decide(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self))

    def __float__(self) -> float:
        return float(self.tracer.decide(self))

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.decide(self), digits)

    def __format__(self, spec: str) -> str:
        return format(self.decided(), spec)

    def __str__(self) -> str:
        return repr(self) if self.tracer.busy else str(self.decided())

    def decided(self) -> Any:
        """The value itself, which the graph holds from now on."""
        if isinstance(self.example, torch.Size):
            return torch.Size([int(item) for item in self])
        return self.tracer.decide(self)

    def __hash__(self) -> int:
        return hash(self.tracer.decide(self)) if isinstance(self.example, PLAIN) else id(self)

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.example, dict):
            return item in self.example
        return any(bool(item == x) for x in self)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise Refused("its result depends on the values of a tensor (.__array__)")

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.call(operator.setitem, self, index, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("tracer", "node", "example"):
            object.__setattr__(self, name, value)
        elif isinstance(self.example, (Tensor, *PLAIN)):
            raise Refused(f"it sets the attribute {name} of a tensor")
        else:
            self.tracer.call(setattr, self, name, value)

    def __invert__(self) -> Any:
        return self.tracer.call(operator.invert, self)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.call(operator.getitem, self, index)

    def __deepcopy__(self, memo: Any) -> Value:
        return self


def _in_place(name: str) -> Any:
    function, pure = (
        getattr(operator, name),
        getattr(operator, name.removeprefix("i") + ("_" if name in ("iand", "ior") else "")),
    )

    def method(self: Value, other: Any) -> Any:
        number = isinstance(self.example, (int, float, tuple))
        return self.tracer.call(pure if number else function, self, other)

    return method


for _name in INPLACE:
    setattr(Value, f"__{_name}__", _in_place(_name))


class Number(Value):
    """A size, or something computed from sizes."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(self.tracer.decide(self), *args, **kwargs)

    def __repr__(self) -> str:
        return super().__repr__() if self.tracer.busy else repr(self.decided())

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self


class Opaque(Value):
    """An object of a class that gatec does not know, such as a KV cache: asked and called, never looked into.

    Its example is a copy that lives as long as the trace, so that later questions see what earlier calls did to it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.example, name)
        if callable(found) and not isinstance(found, type):
            return _Method(self, name)
        return self.tracer.call(getattr, self, name)

    def __bool__(self) -> bool:
        return bool(self.tracer.decide(self.tracer.call(operator.truth, self)))

    def __len__(self) -> int:
        return int(self.tracer.decide(self.tracer.call(builtins.len, self)))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.decide(self.tracer.call(operator.contains, self, item)))

    def _number(self) -> Any:
        raise Refused(f"it takes an object of type {type(self.example).__name__} for a number")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise Refused(f"it calls an object of type {type(self.example).__name__} that it was given")

    __int__ = __index__ = __float__ = _number
    __hash__ = object.__hash__


class _Method:
    def __init__(self, owner: Value, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in CONCRETE_CALLS and isinstance(self.owner.example, Tensor):
            self.owner.tracer.told_form = True
            return getattr(self.owner.example, self.name)(*args, **kwargs)
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


class Apply:
    """A torch.autograd.Function as a graph leaf, so that its own backward survives."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__, self.__module__ = function.__name__, __name__  # not torch's: fx would write its path

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
    if file.startswith(OURS) and not file.startswith(MEASURED):
        return ""
    return f"{file.rpartition('site-packages/')[2]}:{number}"


MEASURED = str(Path(__file__).parents[1] / "bench") + "/"  # its models are written as anybody's
OURS = (
    str(Path(__file__).parents[1]) + "/",
    str(Path(torch.__file__).parent) + "/",
    str(Path(mock.__file__).parent) + "/",
    contextlib.__file__,
    "<",
)


def cuts_features(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node cuts the outputs of a linear layer into pieces: how many these are settles the layer's weight."""
    source = node.args[0] if node.args else None
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    layer = (
        root.get_submodule(str(source.target)) if isinstance(source, fx.Node) and source.op == "call_module" else None
    )
    return bool(dim == -1) and isinstance(layer, nn.Linear)
