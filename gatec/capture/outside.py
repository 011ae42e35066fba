"""The world outside of a forward: globals, closures and classes that it names, and what it may not do while traced."""

from __future__ import annotations

import builtins
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.attention
from torch import nn
from torch.nn.utils import parametrize

from gatec.capture.spies import refill, shape, writable
from gatec.capture.structure import MISSING, attribute, frozen
from gatec.errors import Refused
from gatec.settings import ENVIRONMENT

SECRETS = "__builtins__", "__name__", "__file__", "__doc__"
FORBIDDEN: list[tuple[Any, str, str]] = [
    (builtins, "open", "it opens a file"),
    (builtins, "print", "it calls print, and a graph would not"),
    (torch, "save", "it opens a file"),
    (torch, "manual_seed", "it seeds the random numbers"),
    (torch, "seed", "it seeds the random numbers"),
    (torch.nn.attention, "_sdpa_kernel", "it chooses a kernel for attention"),
    (torch.autograd, "grad", "it takes a derivative (torch.autograd.grad)"),
    (torch, "vmap", "it calls torch.vmap"),
    (parametrize, "cached", "it keeps parametrized weights for a while (parametrize.cached)"),
    (threading.Thread, "start", "it starts a thread"),
    *[(time, n, "it asks for the time") for n in ("time", "perf_counter", "monotonic", "time_ns", "perf_counter_ns")],
    *[(random, n, "it asks Python for random numbers")
      for n in ("random", "randint", "uniform", "choice", "choices", "sample", "shuffle", "gauss", "randrange", "getrandbits")],
    *[(np.random, n, "it asks numpy for random numbers")
      for n in ("random", "rand", "randn", "randint", "uniform", "normal", "choice", "permutation", "shuffle", "beta")],
    *[(torch.func, n, f"it calls torch.func.{n}")
      for n in ("vmap", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian", "jvp", "vjp", "linearize")],
]  # fmt: skip


def forbidden(tracer: Any) -> Iterator[tuple[Any, str, Any]]:
    """Patches that refuse what a graph would do once, now, instead of in every call."""
    for owner, name, words in FORBIDDEN:
        yield owner, name, _refuses(tracer, words, getattr(owner, name))
    yield type(ENVIRONMENT), "__getitem__", _noted(tracer, type(ENVIRONMENT).__getitem__)


def _noted(tracer: Any, original: Any) -> Any:
    """Environment variables that are asked for are guarded."""

    def get(self: Any, name: str) -> str:
        if not tracer.busy and isinstance(name, str):
            tracer.state.reads.add(("$", name))
        return str(original(self, name))

    return get


def _refuses(tracer: Any, words: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        if not tracer.busy:
            raise Refused(words)
        return original(*args, **kwargs)

    return refused


# -- what the code of a forward names -----------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def functions(forward: Any, kind: Any) -> tuple[Any, ...]:
    """The forward and the methods that it names, under their decorators."""
    found = [_plain(forward)]
    names = found[0].__code__.co_names if found[0] is not None else ()
    found += [_plain(getattr(kind, n)) for n in names if callable(getattr(kind, n, None)) and not hasattr(nn.Module, n)]
    return tuple(f for f in found if f is not None)


def _plain(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function if hasattr(function, "__code__") and hasattr(function, "__globals__") else None


def spaces(forward: Any, kind: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every global that the code names, with the dictionary that holds it."""
    for function in functions(forward, kind):
        space = function.__globals__
        yield from ((n, space) for n in function.__code__.co_names if n in space and n not in SECRETS)


def variable(module: nn.Module, kind: type[nn.Module], child: str, name: str) -> Any:
    """A value that a forward depends on besides its arguments: of a child, of the globals (":"), of the environment ("$")."""
    if child == ":":
        return next(
            (f.__globals__[name] for f in functions(kind.forward, cast(Any, kind)) if name in f.__globals__), MISSING
        )
    return ENVIRONMENT.get(name) if child == "$" else attribute(module, child, name)


def flags(forward: Any, kind: type) -> Iterator[str]:
    """Globals that are functions, plain numbers, words, or small containers of such: somebody may change them."""
    for name, space in spaces(forward, kind):
        if isinstance(space[name], (bool, int, float, str, dict, list, set, FunctionType)):
            yield name


def methods(forward: Any, kind: type) -> Iterator[str]:
    """Methods of its class that the code names: somebody may put others in their place."""
    for function in functions(forward, kind)[:1]:
        yield from (
            n for n in function.__code__.co_names if callable(getattr(kind, n, None)) and not hasattr(nn.Module, n)
        )


@contextmanager
def unchanged(forward: Any, kind: type) -> Iterator[None]:
    """Globals, closures and class attributes as they were; refuses a forward that changed one."""
    held = list(_held(forward, kind))
    found = ""
    try:
        yield
        found = next((words for words, now, _, form in held if _form(now()) != form), "")
    finally:
        for _, now, reset, form in held:
            if _form(now()) != form:
                reset()
    if found:
        raise Refused(found)


def _form(value: Any) -> Any:
    return shape(value) if isinstance(value, (dict, list, set)) else frozen(value)


def _held(forward: Any, kind: type) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any], Any]]:
    """(what to say, how it is now, how to put it back, how it was)"""
    for name, space in spaces(forward, kind):
        yield from _watched(f"the global {name}", space, name)
    for function in functions(forward, kind):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if name != "__class__":
                yield from _watched(f"{name} of its closure", cell, "cell_contents")
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, value in list(vars(base).items()):
            if (writable(value) or isinstance(value, (bool, int, float, str))) and not name.startswith("__"):
                yield from _watched(f"{base.__name__}.{name}", base, name)


def _watched(what: str, owner: Any, name: str) -> Iterable[tuple[str, Callable[[], Any], Callable[[], Any], Any]]:
    def get(name: str) -> Any:
        return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)

    def put(name: str, value: Any) -> None:
        owner.__setitem__(name, value) if isinstance(owner, dict) else setattr(owner, name, value)

    value = get(name)
    if writable(value):
        copy = value.copy()
        yield f"its forward changes what stands in {what}", lambda: value, lambda: refill(value, copy), _form(value)
    elif isinstance(value, (bool, int, float, str, type(None))):
        verb = "assigns" if isinstance(owner, type) else "writes"
        yield f"its forward {verb} {what}", lambda: get(name), lambda: put(name, value), _form(value)
