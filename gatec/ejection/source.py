"""Graphs as Python text that stands by itself: every name that it uses becomes an import, or the module is refused."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gatec.capture import around, guards
from gatec.capture.unit import _sayable
from gatec.errors import Refused

CARRIED: dict[str, Any] = {
    f.__name__: f
    for f in (guards.assign, guards.store, guards.erase, guards.bare, guards.called, guards.element, guards.ask)
}


class Fused:
    """Stands in a graph for a function of the ejected package."""

    def __init__(self, name: str) -> None:
        self.__name__, self.__module__ = name, "functions"

    def __call__(self, *operands: Any) -> Any:
        raise NotImplementedError(self.__name__)


@dataclass(frozen=True)
class Text:
    """A function's source, and the lines that its names need in front of it."""

    body: str
    imports: tuple[str, ...]


def text_of(graph: fx.Graph, name: str, *, own: bool = True) -> Text:
    """The graph as `def name(self, ...)`; without `own` as a function that has no module."""
    code = _sayable(graph).python_code("self")
    head, _, body = code.src.strip().partition("\n")
    parameters = re.sub(r"^def forward\((.*)\).*:$", r"\1", head)
    if parameters == head:
        raise Refused("its graph has no plain head")
    names = [p.partition(":")[0].strip() for p in parameters.split(",")]
    parameters = ", ".join(n for n in names if own or n != "self")
    body = "\n".join(re.sub(r";  (\w+ = )+None$", "", line).rstrip() for line in body.splitlines())
    body = re.sub(r"\n{2,}", "\n", body)
    used = {k: v for k, v in code.globals.items() if re.search(rf"\b{re.escape(k)}\b", body)}
    imports = tuple(sorted(line_for(k, v) for k, v in used.items()))
    return Text(f"def {name}({parameters}):\n{body}\n", imports)


def ours(graph: fx.Graph) -> list[str]:
    """The operators of gatec that a graph calls."""
    called = [n.target for n in graph.nodes if n.op == "call_function"]
    modules = [(str(getattr(t, "__module__", "")), str(getattr(t, "__name__", t)), str(t)) for t in called]
    return [text if text.startswith("gatec.") else name for module, name, text in modules
            if text.startswith("gatec.") or module.split(".")[0] == "gatec"]  # fmt: skip


def line_for(name: str, value: Any) -> str:
    """The line that binds one global of a graph's code."""
    if isinstance(value, Fused):
        return f"from .functions import {value.__name__} as {name}"
    if value is around.first or value is around.with_first:
        return f"from .around import {value.__name__} as {name}"
    if value is guards.hold:
        return f"from .runtime import hold as {name}"
    own = getattr(value, "__name__", "")
    if CARRIED.get(own) is value:
        return f"from .carried import {own} as {name}"
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = float('{value}')"
    if value is torch.device:
        return f"from torch import device as {name}"
    if value is type(None):
        return f"{name} = type(None)"
    if isinstance(value, guards.Constant):
        return f"{name} = (lambda: {found_as(value.value)})"
    if isinstance(value, guards.Global):
        return f"{name} = (lambda: {found_in(value.space['__name__'])}.{value.name})"
    return f"{name} = {found_as(value)}"


def found_in(module: str) -> str:
    if module == "__main__" or module.split(".")[0] == "gatec":
        raise Refused(f"its forward needs something of {module}, which is not there without it")
    return f"__import__('importlib').import_module({module!r})"


def found_as(value: Any) -> str:
    """An expression that finds a function or a class where it was defined."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", ""))
    if module in (None, "builtins"):
        module = "builtins"
    expression = f"{found_in(str(module))}.{name}"
    thing: Any = importlib.import_module(str(module))
    for step in str(name).split("."):
        thing = getattr(thing, step, None)
    if thing is not value:
        raise Refused(f"its forward calls {name or value!r}, which no import finds")
    return expression


def carried() -> str:
    """The small functions that graphs use beside torch's own."""
    head = '"""What generated forwards use beside torch."""\n\nimport operator\nfrom typing import Any\n'
    return "\n\n".join([head, *(inspect.getsource(f) for f in CARRIED.values())])
