"""What is patched while a user's forward is traced, so that Python's questions get honest answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

from gatec.capture.guards import writes
from gatec.capture.values import Apply, Value
from gatec.errors import Refused

FACTORIES = ("arange", "zeros", "ones", "full", "empty", "tensor", "as_tensor", "eye", "linspace", "rand", "randn",
             "scalar_tensor", "tril_indices", "triu_indices")  # fmt: skip

_ORIGINAL = {n: getattr(torch, n) for n in FACTORIES if hasattr(torch, n)}
_ORIGINAL_APPLY = torch.autograd.Function.__dict__["apply"].__func__


@contextmanager
def asked_honestly(tracer: Any, root: nn.Module) -> Iterator[None]:
    def factory(original: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs) if tracer.busy else tracer.call(original, *args, **kwargs)

        return made

    def compiling() -> bool:
        tracer.asks_compiling = tracer.asks_compiling or not tracer.busy
        return False

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.busy:
            return _ORIGINAL_APPLY(cls, *args, **kwargs)
        return tracer.create_proxy("call_function", Apply(cls), args, kwargs)

    def no_context(what: str, original: Any) -> Any:
        def enter(self: Any) -> Any:
            if not tracer.busy:
                raise Refused(f"it enters {what} inside its forward")
            return original(self)

        return enter

    with ExitStack() as stack:
        for name, original in _ORIGINAL.items():
            stack.enter_context(mock.patch.object(torch, name, factory(original)))
        stack.enter_context(mock.patch.object(torch.compiler, "is_compiling", compiling))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
        for owner, what in ((torch.no_grad, "torch.no_grad"), (torch.autocast, "torch.autocast")):
            stack.enter_context(mock.patch.object(owner, "__enter__", no_context(what, owner.__enter__)))
        for module in {type(m).__module__ for m in root.modules()}:
            if not module.startswith("torch.") and module in sys.modules:
                stack.enter_context(mock.patch.dict(vars(sys.modules[module]), {"isinstance": _isinstance}))
        yield


@contextmanager
def watched(tracer: Any, root: nn.Module) -> Iterator[None]:
    """Note which plain attributes of the module and its children the forward reads: modules that agree on them share a trace."""
    watched = [("", root), *root.named_children()]
    kinds = [type(m) for _, m in watched]
    for (path, module), kind in zip(watched, kinds, strict=True):
        module.__class__ = _spy(kind, path, tracer)
    try:
        yield
    finally:
        for (_, module), kind in zip(watched, kinds, strict=True):
            module.__class__ = kind


def _spy(kind: type[nn.Module], path: str, tracer: Any) -> type[nn.Module]:
    def read(self: nn.Module, name: str) -> Any:
        if not name.startswith("_") and not tracer.busy and name in object.__getattribute__(self, "__dict__"):
            tracer.reads.add((path, name))
        return kind.__getattribute__(self, name)

    names = {"__getattribute__": read, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def _isinstance(value: Any, kind: Any) -> bool:
    """isinstance() that takes a proxy for what it stands for."""
    if isinstance(value, Value) and not isinstance(kind, fx.Proxy):
        return isinstance(object.__getattribute__(value, "example"), kind)
    return isinstance(value, kind)


@contextmanager
def assigning_nothing(root: nn.Module) -> Iterator[None]:
    """Put back what the forward assigns to its module; refuse it unless it is a buffer that was written in place."""
    modules = [("", root), *root.named_children()]
    before = [(p, m, dict(vars(m)), dict(m._buffers)) for p, m in modules]
    assigned = ""
    try:
        yield
        for path, module, plain, buffers in before:
            changed = [n for n, v in vars(module).items() if n not in plain or v is not plain[n]]
            changed += [
                n
                for n, v in module._buffers.items()
                if not _same_memory(v, f"{path}.{n}" if path else n, buffers.get(n))
            ]
            assigned = assigned or next((f"{path}.{n}" if path else n for n in changed), "")
    finally:
        for _, module, plain, buffers in before:
            vars(module).clear()
            vars(module).update(plain)
            module._buffers.clear()
            module._buffers.update(buffers)
    if assigned:
        raise Refused(f"its forward assigns self.{assigned}")


def _same_memory(now: Any, path: str, before: Any) -> bool:
    """Whether a buffer is still itself: untouched, or what an in-place operation on it gave back."""
    if not isinstance(now, Value):
        return now is before
    node = now.node
    while node.op != "get_attr" and writes(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" and node.target == path
