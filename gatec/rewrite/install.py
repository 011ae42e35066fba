"""An edit made on a live module, measured, and undone step by step if it has to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import fx, nn

from gatec.capture import Call, Unit, install, unit_of
from gatec.capture.unit import uninstall
from gatec.errors import GatecError, Refused
from gatec.match.terms import join
from gatec.program import Program
from gatec.rewrite.undo import Undo
from gatec.verify import Probe

Measured = tuple[float | None, Probe | None]


def installed(program: Program, path: str, module: nn.Module, rewrite: Any, steps: Undo, twins: dict[Any, Any],
              structure: bool = False) -> Measured:  # fmt: skip
    """Put `rewrite` into `module`; how far the module's output moved, unless only the `structure` is wanted."""
    call = program.calls[path][0]
    probe = None if structure else Probe.of(module, call)
    unit = _unit(module, steps)
    if getattr(rewrite, "doors", None) is not None:
        graph = program.shell_of(path)
        site = rewrite(module, graph, call, root=program.model, path=path, undo=steps)
        source = _around(unit, rewrite, call, graph, steps)
    else:
        captured = program.graph_of(path)
        assert captured is not None
        graph = copied(captured)
        site = rewrite(module, graph, call, root=program.model, path=path, undo=steps,
                       graph_of=lambda p: program.graph_of(join(path, p)))  # fmt: skip
        source = _inside(program, path, unit, rewrite, graph, steps)
        if site is not None and site.wide:
            _replayed(module, unit, call)
    if not structure:
        rewrite.born(site)
    if probe is None:
        return None, None
    with _twin(unit, twins, type(module), source):
        return probe.drift(module), probe


def _replayed(module: nn.Module, unit: Unit, call: Call) -> None:
    """Refuse where the module's own forward counts on the sizes that its parameters had."""
    try:
        unit.graph(module, call)
    except (Refused, GatecError, RuntimeError, ValueError, IndexError) as e:
        raise Refused(f"its forward does not hold for a wider hidden layer: {e}") from None


def _around(unit: Unit, rewrite: Any, call: Call, graph: fx.Graph, steps: Undo) -> str:
    """Keep an edit at the boundary: every shell of the module has it from now on."""
    unit.outer.append(rewrite)
    steps.append(unit.outer.pop)
    steps.append(partial(setattr, unit, "shells", unit.shells))
    unit.shells = {}
    return unit.enclose(call, graph).source


def _inside(program: Program, path: str, unit: Unit, rewrite: Any, graph: fx.Graph, steps: Undo) -> str:
    """Keep an edit of the inside: every graph of the module has it from now on."""
    unit.rewrites.append(rewrite)
    steps.append(unit.rewrites.pop)
    before = dict(unit.graphs), dict(unit.added), program.graphs[path]
    steps.append(lambda: _reset(unit, program, path, *before))
    unit.graphs.clear()
    unit.watch(program.reads.get(path, ()), program.asked.get(path, ()))
    unit.added.update({n.partition(".")[0]: True for n in rewrite.added.values() if "." not in n})
    program.graphs[path] = graph
    return unit.keep(program.module(path), program.calls[path][0], graph).source


@contextmanager
def _twin(unit: Unit, twins: dict[Any, Any], kind: type, source: str) -> Iterator[None]:
    """Units with the same class and the same rewritten source share the graphs captured for measuring in float64."""
    own = dict(unit.graphs)
    unit.graphs.update(twins.setdefault((kind, source), {}))
    unit.measured = twins[kind, source]
    yield
    unit.measured = None
    unit.graphs.clear()
    unit.graphs.update(own)


def _reset(unit: Unit, program: Program, path: str, graphs: Any, added: Any, graph: Any) -> None:
    unit.graphs, unit.added, program.graphs[path] = graphs, added, graph


def _unit(module: nn.Module, steps: Undo) -> Unit:
    known = unit_of(module)
    unit = known or install(module)
    if known is None:
        steps.append(lambda: uninstall(module))
    return unit


def copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, env)
    new.output(output)
    return new
