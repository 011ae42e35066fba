"""Classes of modules and configs that tell the tracer what is read from and assigned to their instances."""

from __future__ import annotations

import threading
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gatec.capture.structure import PLAIN, frozen
from gatec.capture.values import Value

OWN = {*vars(nn.Module()), "_gatec", "_is_hf_initialized"} - {"training"}  # what torch itself keeps on a module
ASKED = "__getattribute__", "__setattr__", "__delattr__", "__call__"
CALL = nn.Module.__call__
_CURRENT = threading.local()


class Watch:
    """Classes whose instances tell the tracer what is read from and assigned to them, until the trace ends.

    Modules that agree on what was read share a trace; what changes later makes another graph.
    """

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        self.before: list[tuple[type, dict[str, Any]]] = []
        self.kinds: set[type] = set()

    def __enter__(self) -> Watch:
        self.outer = getattr(_CURRENT, "tracer", None)
        _CURRENT.tracer = self.tracer
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.tracer = self.outer
        for kind, own in reversed(self.before):
            for name in ASKED:
                if name in own:
                    setattr(kind, name, own[name])
                elif name in vars(kind):
                    delattr(kind, name)

    def classes(self, kinds: Iterable[type]) -> bool:
        """Watch these classes; False where one does not allow it. Their own methods are read before any is patched."""
        new = [k for k in kinds if k not in self.kinds and not k.__module__.startswith("torch.jit")]
        methods = [{name: getattr(k, name, None) for name in ASKED} for k in new]
        watched = True
        for kind, own in zip(new, methods, strict=True):
            self.kinds.add(kind)
            if getattr(own["__getattribute__"], "watches", None) is kind:
                continue  # by a trace around this one
            before = {n: vars(kind)[n] for n in ASKED if n in vars(kind)}
            try:
                kind.__getattribute__ = _reader(own["__getattribute__"], kind)  # type: ignore[method-assign]
            except TypeError:  # a class that is not written in Python
                watched = False
                continue
            self.before.append((kind, before))
            if issubclass(kind, nn.Module):
                kind.__setattr__ = _writer(own["__setattr__"])  # type: ignore[method-assign]
                kind.__delattr__ = _deleter(own["__delattr__"])  # type: ignore[method-assign]
                if own["__call__"] is not CALL and "__call__" in own:
                    kind.__call__ = _caller(own["__call__"])  # type: ignore[method-assign]
        return watched


WRITABLE = (list, dict, set, OrderedDict, defaultdict)


def writable(value: Any) -> bool:
    """A list, dict or set whose contents can be copied and put back; what is derived from them has rules of its own."""
    return type(value) in WRITABLE


def shape(value: Any) -> Any:
    """What a list, dict or set is compared by."""
    return len(value), frozen(value)


def refill(value: Any, copy: Any) -> None:
    """Put the contents of `copy` back into the list, dict or set itself."""
    value.clear()
    value.extend(copy) if isinstance(value, list) else value.update(copy)


def tracing() -> bool:
    """Whether this thread is in the middle of a trace, where modules are also called on tensors without data."""
    return getattr(_CURRENT, "tracer", None) is not None or getattr(_CURRENT, "pretends", False)


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, modules are called on tensors without data."""
    before = getattr(_CURRENT, "pretends", False)
    _CURRENT.pretends = True
    try:
        yield
    finally:
        _CURRENT.pretends = before


def _listener(name: str) -> Any:
    tracer = getattr(_CURRENT, "tracer", None)
    return None if tracer is None or tracer.busy or name in OWN or name.startswith("__") else tracer


def _reader(plain: Any, kind: type) -> Any:
    def read(self: Any, name: str) -> Any:
        tracer = _listener(name)
        if tracer is None:
            return plain(self, name)
        try:
            value = plain(self, name)
        except AttributeError:
            tracer.state.lacks(self, name)
            raise
        return tracer.state.read(self, name, value)

    read.watches = kind  # type: ignore[attr-defined]
    return read


def _writer(plain: Any) -> Any:
    def write(self: Any, name: str, value: Any) -> None:
        tracer = _listener(name)
        if tracer is None or not tracer.state.assigned(self, name, value):
            plain(self, name, value)

    return write


def _deleter(plain: Any) -> Any:
    def delete(self: Any, name: str) -> None:
        tracer = _listener(name)
        if tracer is None or not tracer.state.erased(self, name):
            plain(self, name)

    return delete


def _caller(plain: Any) -> Any:
    """A class with a __call__ of its own is called as a whole: what that does, it does again when the graph runs."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracer = _listener("")
        path = tracer.state.paths.get(self) if tracer is not None and not tracer.swapped(self) else None
        return tracer.create_proxy("call_module", path, args, kwargs) if path else plain(self, *args, **kwargs)

    return call


def simple(value: Any) -> bool:
    """A value that a guard compares by what it is: a number, a word, a small container of such."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(simple, value))
    if isinstance(value, dict):
        return all(map(simple, value.values()))
    return isinstance(value, PLAIN) and not isinstance(value, (types.FunctionType, types.MethodType))


def looked_into(value: Any) -> bool:
    """An ordinary object with attributes, such as a config: guarded by what is read of it."""
    if isinstance(value, (nn.Module, Tensor, Value, type, types.ModuleType)) or callable(value):
        return False
    own = type(value).__module__.partition(".")[0] not in ("builtins", "torch", "functools")
    return own and getattr(value, "__dict__", None) is not None
