"""Patterns are functions, parameters are holes: what a pass looks for, matched against canonical terms."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

from torch import Tensor, fx, nn

from gatec.equation import ACTIVATIONS, Activation
from gatec.errors import GatecError
from gatec.match import holes
from gatec.match.flow import Flow
from gatec.match.spelling import spelled
from gatec.match.terms import Linear, Part, Table, Term

TRANSPARENT = {"dropout"}  # active dropout: kept in the graph, seen through by patterns


def here(value: Any) -> Any:
    """Mark the value inside a pattern that the pass replaces; without it the whole pattern's value is replaced."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", here, (value,), {})
    return value


@dataclass(frozen=True)
class Slot:
    """A callable parameter of a pattern, and what may fill it."""

    name: str
    kind: Any

    def __call__(self, x: fx.Proxy) -> fx.Proxy:
        return x.tracer.create_proxy("call_function", self, (x,), {})

    @property
    def __name__(self) -> str:  # fx asks targets for it
        return self.name


@dataclass
class Match:
    """What filled the holes of a pattern at one place."""

    pattern: Pattern
    root: Term
    cut: Term
    values: dict[str, Term] = field(default_factory=dict)
    layers: dict[str, Linear | Part] = field(default_factory=dict)
    acts: dict[str, Activation] = field(default_factory=dict)
    inside: list[Term] = field(default_factory=list)

    @property
    def crossed(self) -> list[Term]:
        return [t for t in self.inside if t.op in TRANSPARENT]

    @property
    def dropout(self) -> float:
        """The rate of the active dropout on the way, 0 where there is none."""
        return next((float(t.data[0]) for t in self.crossed), 0.0)


@dataclass
class Near:
    """A place where the pattern would have matched but for one node."""

    match: Match
    obstacle: Term


@dataclass
class _State:
    flow: Flow
    values: dict[str, Term]
    layers: dict[str, Linear | Part]
    acts: dict[str, Activation]
    inside: list[Term]
    cut: Term | None = None
    obstacle: Term | None = None

    def fork(self) -> _State:
        return replace(
            self, values=dict(self.values), layers=dict(self.layers), acts=dict(self.acts), inside=list(self.inside)
        )


class Pattern:
    """`function(x: Tensor, up: Linear, act: Activation, down: Linear)` as a thing to look for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.name, self.table = function, function.__name__, Table()
        graph, proxies = fx.Graph(), {}
        tracer = fx.proxy.GraphAppendingTracer(graph)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            kind = kind_of(parameter.annotation)
            if kind is None:
                raise GatecError("pattern parameters annotated Tensor, Linear, Activation, with a Hole "
                                 "or with a class of modules",
                                 found=f"{name}: {parameter.annotation}", where=function.__qualname__)  # fmt: skip
            node = graph.placeholder(name) if kind == "tensor" else None
            proxies[name] = fx.Proxy(node, tracer) if node is not None else Slot(name, kind)
        self.holes = tuple(proxies)
        output = function(**proxies)
        env: dict[fx.Node, Term] = {}
        self.cut: Term | None = None
        for node in graph.nodes:
            env[node] = self._term(node, env)
        self.root = env[output.node]
        self.cut = self.cut or self.root

    def _term(self, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        if node.op == "placeholder":
            return self.table.make("?tensor", data=str(node.target))
        if node.target is here:
            self.cut = env[node.all_input_nodes[0]]
            return self.cut
        if isinstance(node.target, Slot):
            kind, x = node.target.kind, env[node.all_input_nodes[0]]
            if isinstance(kind, str):
                return self.table.make(f"?{kind}", x, data=node.target.name)
            return self.table.make("?hole", x, data=node.target)
        found = spelled(self.table, node, lambda a: env[a] if isinstance(a, fx.Node) else a)
        if found is None:
            raise GatecError(
                "a pattern of operations that canonical terms know", found=str(node.target), where=self.name
            )
        return found

    def __reduce__(self) -> Any:
        return Pattern, (self.function,)

    def find(self, flow: Flow) -> Iterator[Match | Near]:
        """Every match, and every place that would match if one node were not there."""
        for term, states in self._candidates(flow):
            whole = next(states(False), None)
            state = whole or next((s for s in states(True) if s.obstacle), None)
            if state is None:
                continue
            layers = {n: state.layers[n] for n in self.holes if n in state.layers}
            match = Match(self, term, state.cut or term, state.values, layers, state.acts, state.inside)
            yield match if state.obstacle is None else Near(match, state.obstacle)

    def _candidates(self, flow: Flow) -> Iterator[tuple[Term, Callable[[bool], Iterator[_State]]]]:
        """The terms that may be the pattern's value, each with the ways of matching it; additions as graphs have them."""
        if self.root.op == "add" and any(_is_branch(a) for a in self.root.args):
            for sides, (total, _) in flow.branches.items():
                yield total, partial(self._sum, total, sides, _State(flow, {}, {}, {}, []))
            return
        wanted = {"?linear": "linear"}.get(self.root.op, self.root.op)
        for term in list(flow.canon.carriers):
            if term.op == wanted or self.root.op in ("?act", "?hole"):
                yield term, partial(self._unify, self.root, term, _State(flow, {}, {}, {}, []))

    def _sum(self, total: Term, sides: tuple[Term, Term], s: _State, bend: bool) -> Iterator[_State]:
        if not bend:
            args = tuple(sorted(self.root.args, key=_is_branch))  # what it is added to comes first
            yield from self._all(args, sides, self._entered(s, total), False)

    def _unify(self, p: Term, t: Term, s: _State, bend: bool) -> Iterator[_State]:
        for state in self._straight(p, t, s, bend):
            if p is self.cut:
                state.cut = t
            yield state
        if p.op == "?tensor":
            return
        if t.op in TRANSPARENT:
            yield from self._unify(p, t.args[0], self._entered(s, t), bend)
        elif bend and p.op != "?hole" and s.obstacle is None and t.op not in ("linear", "value", "param", "const"):
            computed = {id(a): a for a in t.args if not _settled(a)}
            if len(computed) == 1:  # one value goes in: without this node the pattern might match
                bent = self._entered(s, t)
                bent.obstacle = t
                yield from self._unify(p, next(iter(computed.values())), bent, bend)

    @staticmethod
    def _entered(s: _State, t: Term) -> _State:
        state = s.fork()
        state.inside.append(t)
        return state

    def _straight(self, p: Term, t: Term, s: _State, bend: bool) -> Iterator[_State]:
        if p.op == "?tensor":
            if s.values.get(p.data, t) is t:
                state = s.fork()
                state.values[p.data] = t
                yield state
            return
        state = self._entered(s, t)
        if p.op == "?linear" and t.op == "linear" and s.layers.get(p.data, t.data) == t.data:
            state.layers[p.data] = t.data
            yield from self._unify(p.args[0], t.args[0], state, bend)
        elif p.op == "?hole":
            known = s.values.get(p.args[0].data) if p.args[0].op == "?tensor" else None
            for part, x in p.data.kind.fillings(s.flow, t, known):
                filled = state.fork()
                filled.layers[p.data.name] = part
                yield from self._unify(p.args[0], x, filled, bend)
        elif p.op == "?act" and t.op in ACTIVATIONS:
            state.acts[p.data] = Activation(t.op, t.data)
            yield from self._unify(p.args[0], t.args[0], state, bend)
        elif p.op == "?act" and bend and s.obstacle is None and t.op.startswith("call:") and len(t.args) == 1:
            state.obstacle = t  # an activation that gatec cannot look into stands in its place
            yield from self._unify(p.args[0], t.args[0], state, bend)
        elif p.op in ("mul", "add") and t.op == p.op and t.data == p.data and len(t.args) == len(p.args):
            for order in itertools.permutations(t.args):
                yield from self._all(p.args, order, state, bend)
        elif p.op == t.op and p.data == t.data and len(t.args) == len(p.args):
            yield from self._all(p.args, t.args, state, bend)

    def _all(self, ps: tuple[Term, ...], ts: tuple[Term, ...], s: _State, bend: bool) -> Iterator[_State]:
        if not ps:
            yield s
            return
        for state in self._unify(ps[0], ts[0], s, bend):
            yield from self._all(ps[1:], ts[1:], state, bend)


def _settled(t: Term) -> bool:
    """Whether a term is computed from parameters and numbers alone."""
    return t.op in ("param", "const") or (bool(t.args) and all(map(_settled, t.args)))


def _is_branch(p: Term) -> bool:
    return p.op == "?hole" and issubclass(p.data.kind, holes.Branch)


KINDS: dict[Any, str] = {Tensor: "tensor", Linear: "linear", nn.Linear: "linear", Activation: "act"}


def kind_of(annotation: Any) -> Any:
    """How a pattern's parameter is matched; None for an annotation that says nothing to a pattern."""
    if annotation in KINDS:
        return KINDS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, holes.Hole):
        return annotation
    kinds = get_args(annotation) or (annotation,)
    modules = all(isinstance(k, type) and issubclass(k, nn.Module) for k in kinds)
    return holes.of_class(kinds) if modules else None
