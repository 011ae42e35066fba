"""Dataflow around modules: what is added to what, what a call takes and gives.

Canonical terms flatten sums and forget modules; here are the additions and the calls as the graphs have them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture.around import first
from gatec.capture.shell import OWN, taken
from gatec.match.canon import Canon, Place
from gatec.match.terms import Part, Term, join

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: the terms that it takes, in the order of its parameters, and the first that it gives.

    Where something was put at its boundary, it takes what its caller hands over, and gives what its own forward returns.
    """

    path: str
    taken: tuple[Term, ...]
    given: Term
    keeps: bool  # whether the first tensor given has the shape and dtype of the first tensor taken


@dataclass
class Flow:
    """`known` are the modules that filled the holes when the place was found: a replay asks for nothing else."""

    canon: Canon
    known: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def calls(self) -> dict[str, ModuleCall]:
        found: dict[str, ModuleCall] = {}
        own: dict[str, ModuleCall] = {}
        for (path, node), term in self.canon.terms.items():
            call = self._call(path, node, term) if node.op == "call_module" else None
            if call is not None:
                (own if node.target == OWN else found)[call.path] = call
        return own | {p: replace(c, given=own[p].given) if p in own else c for p, c in found.items()}

    def _call(self, path: str, node: fx.Node, term: Term) -> ModuleCall | None:
        child = path if node.target == OWN else join(path, str(node.target))
        nodes = taken(type(self.canon.module_of(child)).forward, node)
        while term.op in ("tuple", "whole") and term.args:
            term = term.args[0]
        before = next((v for n in nodes if (v := first(n.meta.get("val"))) is not None), None)
        after = first(_returned(node))
        keeps = before is not None and after is not None and before.ndim > 1 and _form(before) == _form(after)
        return ModuleCall(child, tuple(self.canon.terms[path, n] for n in nodes), term, keeps) if nodes else None

    @cached_property
    def given(self) -> dict[Term, list[ModuleCall]]:
        """The calls by what they give."""
        found: dict[Term, list[ModuleCall]] = defaultdict(list)
        for call in self.calls.values():
            found[call.given].append(call)
        return found

    # -- residual branches --------------------------------------------------------------------------------------

    @cached_property
    def branches(self) -> dict[tuple[Term, Term], tuple[Term, Part]]:
        """(stream, branch) -> the sum of them, and the module that the branch ends in."""
        found: dict[tuple[Term, Term], tuple[Term, Part]] = {}
        for (path, node), total in self.canon.terms.items():
            if _adds(node) and not _within_a_sum(node):
                for stream, branch, part in self._residual(path, node):
                    found.setdefault((stream, branch), (total, part))
        return found

    def _residual(self, path: str, total: fx.Node) -> Iterator[tuple[Term, Term, Part]]:
        """The summands that are computed from another one; in a replay, where that cannot be seen, those known to be."""
        leaves = list(_summands(total))
        terms = {n: self.canon.terms[path, n] for n in leaves}
        others = {n: [terms[m] for m in leaves if m is not n] for n in leaves}
        streams = {n: s for n in leaves if (s := next((t for t in others[n] if computed_from(terms[n], t)), None))}
        for branch in streams or (leaves if self.known else ()):
            part = self._ends_in(path, branch, streams.get(branch))
            if part is not None and (not self.known or part.path in self.known):
                yield streams.get(branch, others[branch][0]), terms[branch], part

    def _ends_in(self, path: str, node: fx.Node, stream: Term | None) -> Part | None:
        """The last module with parameters, or else the last parameter, that a value has come through since the stream."""
        weights: list[str] = []
        waiting, seen = [(path, node)], set()
        while waiting:
            here = waiting.pop(0)
            path, node = here
            if here in seen or self.canon.terms[here] is stream:
                continue
            seen.add(here)
            name = path if node.target == OWN else join(path, str(node.target))
            if node.op == "call_module" and next(self.canon.module_of(name).parameters(), None) is not None:
                return Part(name)
            if node.op == "get_attr":
                weights.append(name)
            waiting += (
                self._callers(path, node) if node.op == "placeholder" else [(path, n) for n in node.all_input_nodes]
            )
        return Part(weights[0]) if weights else None

    def _callers(self, path: str, node: fx.Node) -> list[Place]:
        """Where the graph around a module holds what it hands over."""
        term = self.canon.terms[path, node]
        above = [p for p in self.canon.carriers[term] if path in self.canon.nested and holds(p[0], path)]
        nearest = max((p[0] for p in above), key=len, default="")
        return [p for p in above if p[0] == nearest][:1]

    # -- blocks -------------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> dict[Term, ModuleCall]:
        """Calls of modules in a chain (a Sequential, a loop over a ModuleList) that keep the form of what they take."""
        chains: dict[str, list[ModuleCall]] = defaultdict(list)
        for call in self.calls.values():
            parent = call.path.rpartition(".")[0]
            chained = bool(call.path) and isinstance(self.canon.module_of(parent), CONTAINERS)
            if chained and call.keeps and any(self.canon.module_of(call.path).children()):
                chains[parent].append(call)
        found = {c.path: c for chain in chains.values() for c in _linked(chain)}
        inner = {q: [self.canon.module_of(p) for p in found if holds(q, p)] for q in found}
        whole = {q: c for q, c in found.items() if not _repeats(inner[q])}  # a stack of blocks is none itself
        return {c.given: c for p, c in whole.items() if not any(holds(q, p) for q in whole)}


def _linked(chain: list[ModuleCall]) -> list[ModuleCall]:
    """The calls that stand in a row: each takes what the one before it has given."""
    pairs = [(a, b) for a, b in pairwise(chain) if a.given is b.taken[0] or computed_from(b.taken[0], a.given)]
    linked = {c.path for pair in pairs for c in pair}
    return [c for c in chain if c.path in linked or len(chain) == 1]


def _repeats(modules: list[nn.Module]) -> bool:
    kinds = [type(m) for m in modules]
    return any(kinds.count(k) > 1 for k in kinds)


def computed_from(value: Term, source: Term) -> bool:
    """Whether `value` depends on the numbers in `source`, or, where that is a sum, in what it is a sum of.

    A term has a higher number than those that it is computed from.
    """
    if source.op == "const":
        return False  # a number stands in many places
    sources = {source, *(source.args if source.op == "add" else ())} - {value}
    lowest = min((s.number for s in sources), default=0)
    waiting, seen = [value], {value}
    while waiting:
        term = waiting.pop()
        if term in sources:
            return True
        for arg in term.args:
            if arg.number >= lowest and arg not in seen and arg.op != "size":
                seen.add(arg)
                waiting.append(arg)
    return False


def holds(outer: str, inner: str) -> bool:
    """Whether the module at `inner` lies below the one at `outer`."""
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _adds(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name.strip("_") not in ("add", "iadd"):
        return False
    sides = [n for n in node.args[:2] if isinstance(n, fx.Node)]
    shapes = [v.shape for n in (node, *sides) if isinstance(v := n.meta.get("val"), Tensor)]
    return len(sides) == 2 and len(shapes) == 3 and len(set(shapes)) == 1


def _within_a_sum(node: fx.Node) -> bool:
    return len(node.users) == 1 and _adds(next(iter(node.users)))


def _summands(node: fx.Node) -> Iterator[fx.Node]:
    for side in node.all_input_nodes:
        if _adds(side) and _within_a_sum(side):
            yield from _summands(side)
        else:
            yield side


def _returned(node: fx.Node) -> Any:
    if node.target != OWN:
        return node.meta.get("val")
    return next((u.meta.get("val") for u in node.users if u.target is first), None)


def _form(value: Tensor) -> Any:
    return value.shape, value.dtype
