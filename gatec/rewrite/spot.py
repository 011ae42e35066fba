"""Where an edit is made: the boundary of one module, or the deepest captured module that holds all of it; and its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from gatec.capture import unit_of
from gatec.errors import Refused
from gatec.gate import Gate
from gatec.match import Flow, Linear, Match, Part, Term
from gatec.match.layers import Norm
from gatec.match.terms import below, join
from gatec.program import Program


@dataclass(frozen=True)
class Spot:
    """The module at `path`; its children to be copied into its graph; or the values by the door where they pass.

    doors    for an edit at the boundary: "in" (the first tensor that the module takes) or "out" (the first it returns)
    """

    path: str
    inlined: tuple[str, ...] = ()
    doors: tuple[tuple[str, str], ...] | None = None


def spot(program: Program, flow: Flow, gate: Gate, match: Match) -> Spot:
    return boundary(program, flow, gate, match) or inside(program, flow, match)


def boundary(program: Program, flow: Flow, gate: Gate, match: Match) -> Spot | None:
    """The one module that fills the holes, where its call takes or gives every value that the gate asks for."""
    paths = {layer.path for layer in match.layers.values()}
    call = flow.calls.get(next(iter(paths))) if len(paths) == 1 else None
    if call is None or call.path not in program.calls:
        return None
    doors = {**dict.fromkeys(call.taken[:1], "in"), call.given: "out"}
    asked = inspect.signature(gate.after).parameters
    values = {"here": match.cut, **{k: v for k, v in match.values.items() if k in asked}}
    if not all(v in doors for v in values.values()):
        return None
    return Spot(call.path, doors=tuple((k, doors[v]) for k, v in values.items()))


def inside(program: Program, flow: Flow, match: Match) -> Spot:
    """The deepest module whose graph holds the replaced value and what fills the tensor holes, and the children to inline."""
    carriers, needed = flow.canon.carriers, [match.cut, *match.values.values()]
    layers = [layer.path for layer in match.layers.values()]
    ends = sorted({p for p, _ in carriers[match.cut]}, key=lambda p: -p.count("."))
    for path in sorted({a for e in ends for a in ancestors(e)}, key=lambda p: -len(p)):
        held = [[p for p, _ in carriers.get(t, ()) if _in(path, p)] for t in needed]
        if not all(held) or not all(_in(path, p) for p in layers):
            continue
        chains = {c for ps in held for c in _chain(path, min(ps, key=len))}
        if all(_copyable(program, join(path, c)) for c in chains) and program.graph_of(path) is not None:
            return Spot(path, tuple(sorted(chains, key=len)))
    raise Refused("no captured module holds all of it")


def _copyable(program: Program, path: str) -> bool:
    """Whether a module's graph is all that a call of it does: nothing was put at its boundary."""
    unit = unit_of(program.module(path))
    return program.graph_of(path) is not None and not (unit and unit.outer)


def _in(path: str, inner: str) -> bool:
    return inner == path or inner.startswith(f"{path}.") or not path


def ancestors(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _chain(path: str, inner: str) -> list[str]:
    """Child paths, relative to `path`, that lead from it to the module `inner`."""
    parts = below(path, inner).split(".") if inner != path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


# -- names ------------------------------------------------------------------------------------------------------------


def site_name(layers: Iterable[Linear | Part]) -> str:
    """The module path that holds all these layers, or where that is a plain row of layers, its last layer."""
    layers = list(layers)
    paths = [layer.path.split(".") for layer in layers]
    shared = []
    for step in zip(*paths, strict=False):
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    last = layers[-1].path
    return last if last.rpartition(".")[2].isdigit() else ".".join(shared)


def relative(site: str, path: str) -> tuple[int, str]:
    """A site's name as seen from the unit at `path`: levels up, and the rest down."""
    if _in(path, site):
        return 0, below(path, site) if site != path else ""
    return path.count(".") + 1 - (site.count(".") + 1 if site else 0), ""


def describe(term: Term) -> str:
    if isinstance(term.data, Norm):
        return f"{term.data.kind} at {term.data.path}" if term.data.path else term.data.kind
    name = term.op.partition(":")[2] or term.op
    where = term.data[0] if isinstance(term.data, tuple) and term.data else term.data
    return f"{name} at {where}" if isinstance(where, str) and where else name
