"""functional_call while a forward is traced: the module's own code, with other tensors where its parameters stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.utils.stateless
from torch import Tensor, nn

from gatec.errors import Refused


def stateless(tracer: Any) -> Iterator[tuple[Any, str, Any]]:
    for owner in (torch.func, torch.nn.utils.stateless):
        yield owner, "functional_call", _called(tracer, getattr(owner, "functional_call"))  # noqa: B009


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module and its children by name, as they are and not as a trace shows them."""
    return {
        f"{path}.{name}" if path else name: value
        for path, child in module.named_modules()
        for held in (child._parameters, child._buffers)
        for name, value in held.items()
        if value is not None
    }


@contextmanager
def own_forwards(module: nn.Module) -> Iterator[None]:
    """Modules that run graphs run their own forwards: a graph has the module's own parameters in it."""
    units = [m.__dict__["_gatec"] for m in module.modules() if "_gatec" in m.__dict__]
    if not all(rewrite.only_fuses for unit in units for rewrite in unit.rewrites):
        raise Refused("it calls functional_call on a module that was rewritten")
    before = [unit.tracing for unit in units]
    try:
        for unit in units:
            unit.tracing = True
        yield
    finally:
        for unit, was in zip(units, before, strict=True):
            unit.tracing = was


def _called(tracer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(module: nn.Module, given: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if tracer.busy:
            return original(module, given, args, kwargs, **options)
        given = given if isinstance(given, Mapping) else {k: v for part in given for k, v in part.items()}
        own = tensors(module)
        if not given.keys() <= own.keys():
            raise Refused("it calls functional_call with names that its module has not")
        if not options.get("tie_weights", True):
            raise Refused("it calls functional_call with tied weights apart")
        args = () if args is None else args if isinstance(args, tuple) else (args,)
        swapped = {id(own[name]): tracer.attribute(value) for name, value in given.items()}
        before, tracer.swaps = tracer.swaps, {**tracer.swaps, **swapped}
        try:
            with own_forwards(module):
                return module(*args, **(kwargs or {}))
        finally:
            tracer.swaps = before

    return call
