"""The module tree of a model: what each module is, where its class is written, and whether it could be captured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gatec.capture import unit_of
from gatec.census.source import line_of
from gatec.match.terms import join
from gatec.program import Program

UNCALLED = "it was not called in the recorded forward"


@dataclass(frozen=True)
class Entry:
    """One module of the tree, parents before children. `own` and `all` count parameters.

    capture  graph (captured), layer (one operation, kept whole), container (has no forward), shared (stands elsewhere
             in the tree), uncalled, refused; `why` says why there is no graph
    """

    path: str
    name: str
    where: str
    own: int
    all: int
    calls: int
    capture: str
    why: str = ""

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dict(vars(self))
        return {"path": values.pop("path"), "class": values.pop("name"), **values}


def entries(program: Program) -> list[Entry]:
    """Every module under every name, in the order of `named_modules`; a shared module is opened where it first stands."""
    found, first = [], dict[int, str]()
    waiting: list[tuple[str, nn.Module]] = [("", program.model)]
    while waiting:
        path, module = waiting.pop()
        known = first.setdefault(id(module), path)
        found.append(_entry(program, path, module, known))
        if known == path:
            children = [(join(path, n), m) for n, m in module._modules.items() if m is not None]
            waiting += reversed(children)
    return found


def missed(program: Program, tree: list[Entry]) -> list[tuple[str, str]]:
    """Every module that could not be captured, with the reason, in the order of the tree.

    Of modules that were not called only the outermost stands here, and no bare layer: those are read, not called.
    """
    known = dict(_without_graph(program, tree))
    elsewhere = sorted(item for item in program.missed.items() if item[0] not in known)
    return [*known.items(), *elsewhere]


def _without_graph(program: Program, tree: list[Entry]) -> Iterator[tuple[str, str]]:
    absent = None
    for entry in tree:
        if entry.capture == "refused":
            yield entry.path, entry.why
        elif entry.capture == "uncalled" and not (absent and entry.path.startswith(f"{absent}.")):
            absent = entry.path
            if not _is_layer(program.module(entry.path)):
                yield entry.path, entry.why


def _entry(program: Program, path: str, module: nn.Module, first: str) -> Entry:
    kind = _kind(module)
    capture, why = _capture(program, path, module, first)
    own, whole = _count(module, recurse=False), _count(module)
    return Entry(path, kind.__name__, line_of(kind), own, whole, len(program.calls.get(path, ())), capture, why)


def _capture(program: Program, path: str, module: nn.Module, first: str) -> tuple[str, str]:
    if path in program.calls:
        graph = program.graph_of(path)
        refusal = program.missed.get(path)
        return ("refused", refusal) if refusal is not None else ("layer" if graph is None else "graph", "")
    if path in program.missed:
        return "refused", program.missed[path]
    if first != path:
        return "shared", f"it is the same module as {first or 'the model'}"
    if type(module).forward is nn.Module.forward:
        return "container", ""
    return "uncalled", UNCALLED


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.") and not any(module.children())


def _count(module: nn.Module, recurse: bool = True) -> int:
    return sum(p.numel() for p in module.parameters(recurse) if not is_lazy(p))


def _kind(module: nn.Module) -> type:
    """The class that the user wrote, under the one that a rewrite generated."""
    unit = unit_of(module)
    return type(module) if unit is None else unit.original
