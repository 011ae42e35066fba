"""explain(): the graphs that the rewritten modules of a model run, what each of them holds for, and how often it ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gatec.capture import Unit, unit_of
from gatec.capture.changing import NAMES, attribute_words
from gatec.capture.unit import LIMIT, Captured


@dataclass(frozen=True)
class Graph:
    """One graph: the form of call and the surroundings that it is for, Python's decisions in it, and the calls it served."""

    arguments: str
    guards: tuple[str, ...]
    decisions: tuple[str, ...]
    nodes: int
    hits: int


@dataclass(frozen=True)
class Explained:
    """One rewritten module: what was put into it, its graphs, captures after conversion, and calls that fell back."""

    path: str
    kind: str
    edits: tuple[str, ...]
    graphs: tuple[Graph, ...]
    replays: int
    fallbacks: int

    def __str__(self) -> str:
        head = f"{self.path or '(model)'} ({self.kind}): {', '.join(self.edits)}"
        counts = f"  {len(self.graphs)} of at most {LIMIT} graphs, {self.replays} captured after conversion"
        rows = [head, counts + (f", {self.fallbacks} calls fell back" if self.fallbacks else "")]
        for graph in self.graphs:
            rows.append(f"  {graph.hits:>6} calls  {graph.arguments}  ({graph.nodes} nodes)")
            rows += [f"                where {guard}" for guard in graph.guards]
            rows += [f"                as long as {decision}" for decision in graph.decisions]
        return "\n".join(rows)


@dataclass(frozen=True)
class Explanation:
    """Every rewritten module of a model, in its order."""

    model: str
    modules: tuple[Explained, ...]

    def __str__(self) -> str:
        if not self.modules:
            return f"{self.model}: no module of it is rewritten"
        return "\n".join([f"{self.model}: {len(self.modules)} rewritten modules", *map(str, self.modules)])


def explain(model: nn.Module) -> Explanation:
    """Graphs, guards, hits and replays of a model that gatec has rewritten; nothing is run or changed.

    A call that no graph is for is captured when it comes, and the same edits are made on its graph: a replay.
    """
    units = ((path, module, unit_of(module)) for path, module in model.named_modules())
    found = [_explained(path, module, unit) for path, module, unit in units if unit is not None]
    return Explanation(type(model).__name__, tuple(found))


def _explained(path: str, module: nn.Module, unit: Unit) -> Explained:
    graphs = [_graph(key, captured, unit) for key, several in unit.graphs.items() for captured in several]
    graphs += [
        Graph(_shell(key), (), (), len(captured.graph.nodes), captured.hits) for key, captured in unit.shells.items()
    ]
    edits = tuple(r.name for r in unit.edits)
    return Explained(path, type(module).__name__, edits, tuple(graphs), unit.replays, unit.fallbacks)


def _graph(key: tuple[tuple[Any, ...], tuple[Any, ...]], captured: Captured, unit: Unit) -> Graph:
    arguments, around = key
    names = [*NAMES, *(attribute_words(*read) for read in unit.reads)]
    guards = [f"{name} is {_words(value)}" for name, value in zip(names, around, strict=False) if _telling(name, value)]
    decisions = dict.fromkeys(f"{line} finds {answer!r}" for line, answer in captured.decisions)
    return Graph(_arguments(arguments), tuple(guards), tuple(decisions), len(captured.graph.nodes), captured.hits)


def _telling(name: str, value: Any) -> bool:
    """Not what holds nearly always, nor an object that has no words."""
    if name == NAMES[0]:
        return True
    return bool(value) and name != NAMES[3] and not isinstance(value, int)


def _words(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], type):
        value = value[1]
    return f"{value!r:.60}"


def _arguments(key: tuple[Any, ...]) -> str:
    """The form of the arguments: tensors by rank, dtype and device, the rest by value."""
    return ", ".join(filter(None, map(_argument, key)))


def _argument(part: Any) -> str:
    if isinstance(part, tuple) and len(part) >= 3 and isinstance(part[1], torch.dtype):
        return f"{str(part[1]).removeprefix('torch.')}[{', '.join('*' * part[0])}] on {part[2]}"
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], type):
        if issubclass(part[0], dict):
            return f"{', '.join(map(str, part[1]))}=" if part[1] else ""
        return "" if issubclass(part[0], (tuple, list)) else str(part[1])
    return part.__name__ if isinstance(part, type) else repr(part)


def _shell(key: tuple[Any, ...]) -> str:
    kinds = [part.__name__ if isinstance(part, type) else "" for part in key]
    return ", ".join(filter(None, kinds)) + " (at its boundary)"
