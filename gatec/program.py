"""A model as gatec sees it: the calls of one forward, a graph per module captured when asked for, the edits so far."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from gatec.capture import Call, Trace, record, trace, unit_of
from gatec.capture.around import first, spread
from gatec.capture.outside import variable
from gatec.capture.record import compiled
from gatec.capture.shell import shell
from gatec.capture.structure import flatten, frozen
from gatec.errors import Refused
from gatec.match import Canon, Term
from gatec.match.terms import join

Verdict = Literal["put", "left", "near"]


@dataclass(frozen=True)
class Edit:
    """One decision at one site. `drift` is the relative change of the rewritten module's output, None if not measured."""

    gate: str
    site: str
    verdict: Verdict
    why: str = ""
    drift: float | None = None
    note: str = ""

    def __str__(self) -> str:
        moved = f"drift {self.drift:.1e}{self.note}" if self.drift is not None else ""
        return f"{self.gate:<8} {self.site or '(model)':<36} {self.verdict:<5} {self.why or moved}".rstrip()


@dataclass
class Program:
    """What travels. `graph_of` captures lazily; modules of one class, configuration and call form share a trace."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: dict[str, list[Call]]
    edits: list[Edit] = field(default_factory=list)
    graphs: dict[str, fx.Graph | None] = field(default_factory=dict)
    others: dict[Any, fx.Graph | str] = field(default_factory=dict)  # of calls in other forms, or why there is none
    missed: dict[str, str] = field(default_factory=dict)
    reads: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)  # attributes that each capture read
    asked: dict[str, frozenset[str]] = field(default_factory=dict)  # questions about the surroundings, likewise
    shared: dict[Any, list[tuple[dict[tuple[str, str], Any], Trace]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        program = cls(model, args, kwargs, record(model, *cloned((args, kwargs))))
        program.missed.update(compiled(model))
        return program

    @cached_property
    def names(self) -> dict[int, list[str]]:
        return named_parameters(self.model)

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def graph_of(self, path: str) -> fx.Graph | None:
        """The captured graph of the module's first recorded call, or None with the reason in `missed`."""
        if path not in self.graphs:
            try:
                self.graphs[path] = self._capture(path)
            except Refused as e:
                self.graphs[path] = None
                self.missed[path] = str(e)
        return self.graphs[path]

    def _capture(self, path: str) -> fx.Graph | None:
        module, call = self.module(path), self.calls.get(path, [None])[0]
        if call is None:
            raise Refused("it was not called in the recorded forward")
        if type(module).__module__.startswith("torch.nn.modules") and not any(module.children()):
            return None
        if "forward" in vars(module):
            raise Refused("its forward was replaced on the object itself")
        unit = unit_of(module)
        if unit is not None and unit.rewrites:
            return unit.graph(module, call, self.known(path))
        alike = self.shared.setdefault(_likeness(module, call), [])
        kind = unit.original if unit else type(module)
        found = next((t for values, t in alike if values == _values(module, kind, values)), None)
        if found is None:
            found = trace(module, kind.forward, call, self.known(path))
            alike.append((_values(module, kind, found.reads), found))
        self.reads[path], self.asked[path] = found.reads, found.asked
        return found.graph

    def graph_for(self, path: str, node: fx.Node) -> fx.Graph | None:
        """What a module computes where it is called in another form than at first: with an argument more, or less."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
        module, unit = self.module(path), unit_of(self.module(path))
        call = self.known("")(path, Call(tuple(args), dict(kwargs)))
        if call is None or "forward" in vars(module) or (unit is not None and unit.rewrites):
            return None
        try:
            return self._in_form(path, call)
        except Refused:
            return None

    def other_graphs(self, path: str) -> Iterator[fx.Graph]:
        """A module's graph in each form in which it is called but the first. Raises Refused where there is none."""
        first, *rest = self.calls[path]
        seen = {flatten(first.args, first.kwargs).key}
        for call in rest:
            key = flatten(call.args, call.kwargs).key
            if key not in seen:
                seen.add(key)
                yield self._in_form(path, call)

    def _in_form(self, path: str, call: Call) -> fx.Graph:
        """The graph of a call in another form than the first, captured once while nothing is put into the module."""
        module = self.module(path)
        unit, key = unit_of(module), (path, _form(call))
        if unit is not None and unit.rewrites:
            return unit.graph(module, call, self.known(path))
        if key not in self.others:
            try:
                kind = unit.original if unit else type(module)
                self.others[key] = trace(module, kind.forward, call, self.known(path)).graph
            except Refused as e:
                self.others[key] = str(e)
        found = self.others[key]
        if isinstance(found, str):
            raise Refused(found)
        return found

    def shell_of(self, path: str) -> fx.Graph:
        """The module from outside, with what was put at its boundary so far."""
        module, call = self.module(path), self.calls[path][0]
        unit = unit_of(module)
        return unit.shell(module, call) if unit else shell(type(module).forward, call)

    def known(self, path: str) -> Any:
        """Recorded calls of the module's children, found again by the form of their arguments."""

        def find(child: str, call: Call) -> Call | None:
            form = _form(call)
            return next((c for c in self.calls.get(join(path, child), ()) if _form(c) == form), None)

        return find

    def canon(self, forms: bool = True) -> Canon:
        """Canonical terms of everything that could be captured; where a module is missing its children are asked.

        `forms`: modules that are called in several forms are looked at in each; only the first can be edited.
        """
        canon = Canon(self.graph_of, self.module, graph_for=self.graph_for if forms else None)
        waiting, passed = [("", False)], {}  # type: tuple[list[tuple[str, bool]], dict[int, Term]]
        while waiting:
            path, seen = waiting.pop(0)
            unit, graph = unit_of(self.module(path)), None
            canon.gaps.clear()
            if path in self.calls and not (unit and unit.outer):
                graph = self.graph_of(path)
            if graph is not None:
                canon.run(path, graph)
            elif path in self.calls and not seen:
                self._from_outside(canon, path, passed)
            waiting += [(gap, True) for gap in canon.gaps if gap != path]
            if graph is None and (seen or path in canon.gaps or path not in self.calls):  # nothing has looked into it
                waiting += [(join(path, name), False) for name, _ in self.module(path).named_children()]
        return canon

    def _from_outside(self, canon: Canon, path: str, passed: dict[int, Term]) -> None:
        """A module that no captured graph calls: its recorded call is its graph, and a tensor is known by its identity."""
        call, graph = self.calls[path][0], self.shell_of(path)
        inputs = [passed.setdefault(id(x), canon.table.fresh(path)) if isinstance(x, Tensor) else canon.table.fresh(path)
                  for x in spread(call.args, call.kwargs)[0]]  # fmt: skip
        canon.sweep(path, graph, inputs)
        canon.uses[path] = len(self.calls[path])
        for node in graph.nodes:
            if node.target is first:  # there is none where a gate replaced the module
                passed[id(first(call.output))] = canon.terms[path, node]


def _form(call: Call) -> Any:
    flat = flatten(call.args, call.kwargs)
    return flat.key, tuple(tuple(t.shape) if isinstance(t, Tensor) else id(type(t)) for t in flat.leaves)


def _likeness(module: nn.Module, call: Call) -> Any:
    """What modules that share a trace must agree on before its reads are compared: class, parameters, buffers, children, form."""
    children = tuple((n, type(c), unit_of(c) and id(c)) for n, c in module.named_children())
    held = itertools.chain(module.named_parameters(), module.named_buffers())
    parameters = tuple((n, p.shape, p.dtype, p.device) for n, p in held)
    flags = tuple(m.training for m in module.modules())
    return type(module), parameters, children, flags, _form(call)


def _values(module: nn.Module, kind: type[nn.Module], reads: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    return {(child, name): frozen(variable(module, kind, child, name)) for child, name in reads}


def named_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Every path under which a parameter is known, by its id: tied parameters have several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def cloned(values: Any) -> Any:
    """The same values in memory of their own: a forward may write into what it is given."""
    return _mapped(values, lambda t: t.detach().clone())


def doubled(values: Any) -> Any:
    """The same values with floating tensors in float64."""
    return _mapped(values, lambda t: t.double() if t.is_floating_point() else t)


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor changed once: two arguments that are one object stay one."""
    made: dict[int, Tensor] = {}

    def once(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in made:
            made[id(value)] = change(value)
        return made[id(value)]

    return tree_map(once, values)
