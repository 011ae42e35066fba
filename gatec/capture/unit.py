"""A module of the user's model whose forward is a graph: the same object, in a generated subclass of its own class."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from gatec.capture.guards import Miss
from gatec.capture.record import Call
from gatec.capture.shell import OWN, shell, spread
from gatec.capture.structure import flatten, frozen
from gatec.capture.tracer import trace
from gatec.errors import GatecError, Refused

LIMIT = 16  # graphs per module; more means that a decision keeps changing


@dataclass
class Captured:
    """One graph of one module under one key, compiled on demand."""

    graph: fx.Graph
    run: Callable[..., Any]
    source: str


@dataclass
class Unit:
    """What gatec knows about one rewritten module: its own class, how its graph is rewritten, and its graphs so far.

    `rewrite(module, graph, call)` replays the edits on a freshly captured graph; it is what pickling keeps. A unit whose
    meaning was changed never runs its old forward; one that was only fused may, and counts it.
    """

    original: type[nn.Module]
    rewrites: list[Any] = field(default_factory=list)
    added: dict[str, Any] = field(default_factory=dict)
    graphs: dict[Any, list[Captured]] = field(default_factory=dict)
    fallbacks: int = 0
    asks_compiling: bool = False
    reads: tuple[tuple[str, str], ...] = ()  # attributes (child, name) that some capture has baked in
    measured: dict[Any, list[Captured]] | None = None  # where copies of the unit leave the graphs they capture
    outer: list[Any] = field(default_factory=list)  # edits at the boundary, around all that is done inside
    shells: dict[Any, Captured] = field(default_factory=dict)

    @property
    def edits(self) -> list[Any]:
        return [*self.rewrites, *self.outer]

    @property
    def only_fused(self) -> bool:
        return all(r.only_fuses for r in self.rewrites)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graphs": {}, "measured": None, "shells": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Unit:
        rewrites = copy.deepcopy(self.rewrites, memo)
        graphs = {k: list(v) for k, v in self.graphs.items()}
        return Unit(
            self.original, rewrites, dict(self.added), graphs, 0, self.asks_compiling, self.reads, self.measured,
            copy.deepcopy(self.outer, memo), dict(self.shells),
        )  # fmt: skip

    def graph(self, module: nn.Module, call: Call, known: Any = None) -> fx.Graph:
        """The rewritten graph of one call, captured anew from the user's own forward."""
        with _hidden(module, self.added):
            graph, asks, reads = trace(module, self.original.forward, call, known)
        self.asks_compiling = self.asks_compiling or asks
        self.watch(reads)
        for rewrite in self.rewrites:
            rewrite(module, graph, call)
        return graph

    def shell(self, module: nn.Module, call: Call) -> fx.Graph:
        """The module from outside, with the edits at its boundary."""
        graph = shell(self.original.forward, call)
        for rewrite in self.outer:
            rewrite(module, graph, call)
        return graph

    def enclose(self, call: Call, graph: fx.Graph) -> Captured:
        key = spread(call.args, call.kwargs)[1]
        self.shells[key] = compiled(graph)
        return self.shells[key]

    def watch(self, reads: Iterable[tuple[str, str]]) -> None:
        """Guard these attributes from now on; graphs captured before they were known are captured again."""
        self.reads = tuple(sorted({*self.reads, *reads}))

    def keep(self, module: nn.Module, call: Call, graph: fx.Graph) -> Captured:
        key = (flatten(call.args, call.kwargs).key, surroundings(module, self))
        captured = compiled(graph)
        for graphs in (self.graphs, self.measured):
            if graphs is not None:
                graphs.setdefault(key, []).append(captured)
        return captured


def compiled(graph: fx.Graph) -> Captured:
    """The graph as a function of the live module and the leaves of its arguments."""
    for node in graph.nodes:
        if node.name == "self":  # a child of that name (BERT has one) would hide the module
            node._rename("self_")
    code = graph.python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<gatec {id(graph)}>", "exec"), space)
    return Captured(graph, space["forward"], code.src)


def surroundings(module: nn.Module, unit: Unit) -> tuple[Any, ...]:
    """What a forward may depend on besides its arguments: train flag, autocast, the implementation flags of a config."""
    config = getattr(module, "config", None)
    return (
        module.training,
        torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        getattr(config, "_attn_implementation", None),
        getattr(config, "_experts_implementation", None),
        unit.asks_compiling and torch.compiler.is_compiling(),
        *[_attribute(module, child, name) for child, name in unit.reads],
    )


def _attribute(module: nn.Module, child: str, name: str) -> Any:
    owner = module._modules.get(child) if child else module
    return frozen(owner.__dict__.get(name)) if owner is not None else None


class _hidden:
    """The module without what gatec added to it, while its own forward is traced."""

    def __init__(self, module: nn.Module, added: dict[str, Any]) -> None:
        self.module, self.added = module, added

    def __enter__(self) -> None:
        self.order = dict(self.module._modules)
        for name in self.added:
            self.module._modules.pop(name, None)

    def __exit__(self, *_: object) -> None:
        self.module._modules.clear()
        self.module._modules.update(self.order)


def unit_of(module: nn.Module) -> Unit | None:
    unit = module.__dict__.get("_gatec")
    return unit if isinstance(unit, Unit) else None


def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    unit: Unit = self.__dict__["_gatec"]
    if not unit.outer:
        return inside(self, *args, **kwargs)
    leaves, key = spread(args, kwargs)
    captured = unit.shells.get(key) or _enclosed(self, unit, args, kwargs)
    return captured.run(self, *leaves)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def _enclosed(module: nn.Module, unit: Unit, args: Any, kwargs: Any) -> Captured:
    call = Call(args, kwargs)
    return unit.enclose(call, unit.shell(module, call))


def inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module without what was put at its boundary."""
    unit: Unit = self.__dict__["_gatec"]
    if not unit.rewrites:
        return unit.original.forward(self, *args, **kwargs)
    flat = flatten(args, kwargs)
    key = (flat.key, surroundings(self, unit))
    for captured in unit.graphs.get(key, ()):
        try:
            result = captured.run(self, *flat.leaves)
        except Miss:
            continue
        return result
    return _recapture(self, unit, args, kwargs, flat.leaves)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def _recapture(module: nn.Module, unit: Unit, args: Any, kwargs: Any, leaves: list[Any]) -> Any:
    """Capture this call, replay the edits, and run it; the next call like it finds its graph."""
    path = f"{type(module).__name__}.forward"
    if sum(map(len, unit.graphs.values())) >= LIMIT:
        if unit.only_fused:
            return _fall_back(module, unit, args, kwargs)
        raise GatecError(f"at most {LIMIT} different calls of one rewritten module",
                         found=f"another one: {_described(args, kwargs)}", where=path,
                         hint="call it with fewer argument forms, or convert the module around it")  # fmt: skip
    try:
        call = Call(args, kwargs)
        captured = unit.keep(module, call, unit.graph(module, call))
    except Refused as e:
        if unit.only_fused:
            return _fall_back(module, unit, args, kwargs)
        raise GatecError("the same rewrite for another call of the module", found=str(e), where=path,
                         hint="pass inputs of this form to gatec.convert(..., inputs=...)") from e  # fmt: skip
    return captured.run(module, *leaves)


def _fall_back(module: nn.Module, unit: Unit, args: Any, kwargs: Any) -> Any:
    unit.fallbacks += 1
    return unit.original.forward(module, *args, **kwargs)


def _described(args: Any, kwargs: Any) -> str:
    return ", ".join(str(k) for k in flatten(args, kwargs).key)[:200]


# -- generated subclasses -----------------------------------------------------------------------------------------

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def rewritten_class(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass whose forward runs the unit's graphs; named as the original, so that nobody who asks is surprised."""
    if original not in _CLASSES:
        body = {"forward": _signed(original.forward), OWN: inside, "__reduce_ex__": _reduce, "__module__": original.__module__,
                "__qualname__": original.__qualname__, "__doc__": original.__doc__}  # fmt: skip
        _CLASSES[original] = type(original.__name__, (original,), body)
    return _CLASSES[original]


def _signed(original: Any) -> Any:
    """`forward` under the original's name and signature: generate() and others ask what a forward takes."""
    copied = types.FunctionType(forward.__code__, forward.__globals__, forward.__name__)
    return functools.update_wrapper(copied, original)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    return _revive, (self.__dict__["_gatec"].original,), self.__dict__


def _revive(original: type[nn.Module]) -> nn.Module:
    cls = rewritten_class(original)
    return cls.__new__(cls)


def install(module: nn.Module) -> Unit:
    """Make `module` a unit (once); its class becomes a subclass of the one it had."""
    unit = unit_of(module)
    if unit is None:
        if "forward" in vars(module):
            raise Refused("its forward was replaced on the object itself")
        unit = Unit(type(module))
        module.__dict__["_gatec"] = unit
        module.__class__ = rewritten_class(type(module))
    return unit


def uninstall(module: nn.Module) -> None:
    unit = unit_of(module)
    if unit is not None:
        module.__class__ = unit.original
        del module.__dict__["_gatec"]
