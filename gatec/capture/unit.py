"""A module of the user's model whose forward is a graph: the same object, in a generated subclass of its own class."""

from __future__ import annotations

import copy
import functools
import keyword
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.amp import autocast_mode
from torch.nn.utils import parametrize

from gatec.capture.around import spread
from gatec.capture.changing import changing
from gatec.capture.guards import SELF, Changed, Miss, bare, called, element, hold, writes
from gatec.capture.loading import load
from gatec.capture.outside import variable
from gatec.capture.patches import answers
from gatec.capture.record import Call
from gatec.capture.shell import OWN, shell, uncalled
from gatec.capture.structure import flatten, frozen
from gatec.capture.tracer import trace
from gatec.capture.values import Value
from gatec.errors import GatecError, Refused

LIMIT = 16  # graphs per module; more means that a decision keeps changing
BARE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # return a tensor and nothing else


@dataclass
class Captured:
    """One graph of one module under one key, compiled on demand."""

    graph: fx.Graph
    run: Callable[..., Any]
    source: str
    hits: int = 0

    @functools.cached_property
    def decisions(self) -> list[tuple[str, Any]]:
        """The Python decisions that the graph holds for: file:line of the user's code, and the answer there."""
        return [(str(n.args[2]), n.args[1]) for n in self.graph.nodes if n.target is hold]


@dataclass
class Nothing:
    """A rewrite that changes nothing: the module runs its graphs all the same, as it must where capture is judged."""

    name: str = "nothing"
    only_fuses: bool = True
    added: dict[str, str] = field(default_factory=dict)

    def __call__(self, module: nn.Module, graph: fx.Graph, call: Call, **_: Any) -> None:
        """Leave the graph as it is."""


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
    replays: int = 0  # calls that were captured, and the edits replayed, after conversion
    asked: frozenset[str] = frozenset()  # what some capture's Python asked about its surroundings
    reads: tuple[tuple[str, str], ...] = ()  # attributes (child, name) that some capture has baked in
    numbers: bool = False  # int and float arguments are values of the graph, because they change from call to call
    tracing: bool = False  # its own forward is being captured
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
        copied = copy.copy(self)
        copied.rewrites, copied.outer = copy.deepcopy((self.rewrites, self.outer), memo)
        copied.graphs, copied.shells = {k: list(v) for k, v in self.graphs.items()}, dict(self.shells)
        copied.added, copied.fallbacks = dict(self.added), 0
        return copied

    def graph(self, module: nn.Module, call: Call, known: Any = None) -> fx.Graph:
        """The rewritten graph of one call, captured anew from the user's own forward."""
        self.tracing = True
        try:
            with _hidden(module, self.added):
                found = trace(module, self.original.forward, call, known, self.numbers)
        finally:
            self.tracing = False
        self.watch(found.reads, found.asked)
        for rewrite in self.rewrites:
            rewrite(module, found.graph, call)
        return found.graph

    def shell(self, module: nn.Module, call: Call) -> fx.Graph:
        """The module from outside, with the edits at its boundary."""
        graph = shell(self.original.forward, call)
        for rewrite in self.outer:
            rewrite(module, graph, call)
        return graph

    def enclose(self, call: Call, graph: fx.Graph) -> Captured:
        key = spread(call.args, call.kwargs)[1]
        if self.original in BARE:
            uncalled(graph)
        self.shells[key] = compiled(graph)
        return self.shells[key]

    def watch(self, reads: Iterable[tuple[str, str]], asked: Iterable[str] = ()) -> None:
        """Guard these attributes and questions from now on; graphs from before they were known are captured again."""
        self.reads = tuple(sorted({*self.reads, *reads}))
        self.asked = self.asked.union(asked)

    def keep(self, module: nn.Module, call: Call, graph: fx.Graph) -> Captured:
        key = (flatten(call.args, call.kwargs, self.numbers).key, surroundings(module, self))
        captured = compiled(graph)
        for graphs in (self.graphs, self.measured):
            if graphs is not None:
                graphs.setdefault(key, []).append(captured)
        return captured


def compiled(graph: fx.Graph) -> Captured:
    """The graph as a function of the live module and the leaves of its arguments."""
    code = _sayable(graph).python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<gatec {id(graph)}>", "exec"), space)
    run = space["forward"]
    casts = any(n.target is autocast_mode._enter_autocast for n in graph.nodes)
    return Captured(graph, _closing(run) if casts else run, code.src)


def _sayable(graph: fx.Graph) -> fx.Graph:
    """The graph without module and parameter names that are keywords of Python."""
    odd = [n for n in graph.nodes if n.op in ("call_module", "get_attr") and _keyword(str(n.target))]
    if not odd:
        return graph
    new, env = fx.Graph(), dict[fx.Node, Any]()
    me: Any = SELF
    for node in graph.nodes:
        if node not in odd:
            env[node] = new.node_copy(node, env.__getitem__)
            continue
        thing = new.call_function(element, (me, str(node.target)))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = new.call_function(called, (thing, *args), kwargs) if node.op == "call_module" else thing
    return new


def _keyword(target: str) -> bool:
    return any(map(keyword.iskeyword, target.split(".")))


def _closing(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, which enters torch.autocast, with the state of before put back if it raises inside."""

    def closing(self: nn.Module, *leaves: Any) -> Any:
        before = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
        try:
            return run(self, *leaves)
        except BaseException:
            for device, enabled, dtype in before:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            raise

    return closing


def surroundings(module: nn.Module, unit: Unit) -> tuple[Any, ...]:
    """What a forward may depend on besides its arguments: train flag, autocast, what it asks, what it reads."""
    return (
        module.training,
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        tuple(map(type, module._modules.values())),
        answers(unit.asked) if unit.asked else (),
        *[frozen(variable(module, unit.original, child, name)) for child, name in unit.reads],
    )


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
    unit: Unit | None = self.__dict__.get("_gatec")
    if unit is None or unit.tracing:  # a slice of a Sequential, or a forward that calls itself
        own: Any = unit.original if unit else type(self).__mro__[1]
        return own.forward(self, *args, **kwargs)
    if not unit.outer:
        return inside(self, *args, **kwargs)
    leaves, key = spread(args, kwargs)
    captured = unit.shells.get(key)
    if captured is None:
        if (tracer := _tracer(leaves)) is not None:
            return tracer.call(bare, self, *args, **kwargs)
        captured = _enclosed(self, unit, args, kwargs)
    if not torch.compiler.is_compiling():
        captured.hits += 1
    return captured.run(self, *leaves)


def _tracer(leaves: list[Any]) -> Any:
    """The trace of a module around this one that calls `.forward` and not the module, if there is one."""
    return next((x.tracer for x in leaves if isinstance(x, Value)), None)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def _enclosed(module: nn.Module, unit: Unit, args: Any, kwargs: Any) -> Captured:
    call = Call(args, kwargs)
    return unit.enclose(call, unit.shell(module, call))


def inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module without what was put at its boundary."""
    unit: Unit = self.__dict__["_gatec"]
    if not unit.rewrites:
        return unit.original.forward(self, *args, **kwargs)
    flat = flatten(args, kwargs, unit.numbers)
    key = (flat.key, surroundings(self, unit))
    for captured in unit.graphs.get(key, ()):
        try:
            result = captured.run(self, *flat.leaves)
        except Miss as e:
            if isinstance(e, Changed) and unit.only_fused:
                return _fall_back(self, unit, args, kwargs)
            continue
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            return _caught(self, unit, args, kwargs, captured, e)
        if not torch.compiler.is_compiling():
            captured.hits += 1
        return result
    return _recapture(self, unit, args, kwargs)


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def _recapture(module: nn.Module, unit: Unit, args: Any, kwargs: Any) -> Any:
    """Capture this call, replay the edits, and run it; the next call like it finds its graph."""
    path = f"{type(module).__name__}.forward"
    flat = flatten(args, kwargs, unit.numbers)
    if (tracer := _tracer(flat.leaves)) is not None:
        return tracer.call(bare, module, *args, **kwargs)
    if unit.only_fused and torch._C._are_functorch_transforms_active():
        return _fall_back(module, unit, args, kwargs)  # tensors inside a transform cannot be looked at
    if not unit.numbers and any(_but_for_numbers(flat.key, known) for known, _ in unit.graphs):
        unit.numbers = True
        unit.graphs.clear()
        flat = flatten(args, kwargs, True)
    if sum(map(len, unit.graphs.values())) >= LIMIT:
        if unit.only_fused:
            return _fall_back(module, unit, args, kwargs)
        raise GatecError(f"at most {LIMIT} different calls of one rewritten module",
                         found=changing(unit, (flat.key, surroundings(module, unit))), where=path,
                         hint="call it with fewer argument forms, or convert the module around it")  # fmt: skip
    try:
        call = Call(args, kwargs)
        captured = unit.keep(module, call, unit.graph(module, call))
        unit.replays += 1
    except Refused as e:
        if unit.only_fused:
            return _fall_back(module, unit, args, kwargs)
        raise GatecError("the same rewrite for another call of the module", found=str(e), where=path,
                         hint="pass inputs of this form to gatec.convert(..., inputs=...)") from e  # fmt: skip
    try:
        return captured.run(module, *flat.leaves)
    except Miss as e:
        if unit.only_fused:
            return _fall_back(module, unit, args, kwargs)
        raise GatecError("a decision that is the same for equal sizes", found=f"another answer at {e}", where=path,
                         hint="the forward asks for something that its arguments do not settle") from e  # fmt: skip


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def _caught(module: nn.Module, unit: Unit, args: Any, kwargs: Any, captured: Captured, trouble: Exception) -> Any:
    """Where the user's own forward catches what an operation raises for this call, what it does then; else the error."""
    if isinstance(trouble, GatecError) or any(writes(n) for n in captured.graph.nodes):
        raise trouble
    try:
        graph = unit.graph(module, Call(args, kwargs))
    except (Refused, GatecError, NotImplementedError):  # a tensor inside a transform has no memory to be asked for
        raise trouble from None
    other = compiled(graph)
    if other.source == captured.source:
        raise trouble
    return other.run(module, *flatten(args, kwargs, unit.numbers).leaves)


def _but_for_numbers(key: tuple[Any, ...], known: tuple[Any, ...]) -> bool:
    """Whether two calls differ in numbers only."""
    pairs = list(zip(key, known, strict=False))
    same = all(a == b or (_number(a) and _number(b)) for a, b in pairs)
    return len(key) == len(known) and same and any(a != b for a, b in pairs)


def _number(part: Any) -> bool:
    return isinstance(part, tuple) and len(part) == 2 and part[0] in (int, float)


def _fall_back(module: nn.Module, unit: Unit, args: Any, kwargs: Any) -> Any:
    unit.fallbacks += 1
    return unit.original.forward(module, *args, **kwargs)


# -- generated subclasses -----------------------------------------------------------------------------------------

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def rewritten_class(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass whose forward runs the unit's graphs; named as the original, so that nobody who asks is surprised."""
    if original not in _CLASSES:
        body = {"forward": _signed(original.forward), OWN: inside, "__reduce_ex__": _reduce,
                "_load_from_state_dict": load, "__module__": original.__module__,
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


def installable(module: nn.Module) -> None:
    """Refuse a module whose class or forward is not its own."""
    if unit_of(module) is not None:
        return
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused("it is compiled by TorchScript")
    if "forward" in vars(module):
        raise Refused("its forward was replaced on the object itself")
    if parametrize.is_parametrized(module):
        raise Refused("it is parametrized (torch.nn.utils.parametrize): rewrite the module around it")


def install(module: nn.Module) -> Unit:
    """Make `module` a unit (once); its class becomes a subclass of the one it had."""
    unit = unit_of(module)
    if unit is None:
        installable(module)
        unit = Unit(type(module))
        module.__dict__["_gatec"] = unit
        module.__class__ = rewritten_class(type(module))
    return unit


def uninstall(module: nn.Module) -> None:
    unit = unit_of(module)
    if unit is not None:
        module.__class__ = unit.original
        del module.__dict__["_gatec"]
