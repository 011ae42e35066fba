"""One graph that Dynamo handed over: the gates in it, what was fused and what was left, and the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gatec.backend.reading import Reading, frames, shape_seen
from gatec.errors import GatecError
from gatec.kernel import Kernel
from gatec.lower import EAGER, NOTHING, op_for, placed, unused
from gatec.making import made_for
from gatec.program import Edit
from gatec.recognise import Find, finds
from gatec.regions import Region, grown, transforms

FUNC = "it is computed inside a torch.func transform"


@dataclass(frozen=True)
class Compiled:
    """`name` is Dynamo's number of the graph and its first line; `missed` says why gatec left it as it was."""

    name: str
    gates: tuple[Find, ...] = ()
    edits: tuple[Edit, ...] = ()
    kernels: dict[str, Kernel] = field(default_factory=dict)
    missed: str = ""

    def __str__(self) -> str:
        put = sum(e.verdict == "put" for e in self.edits)
        rows = [f"{self.name}: gates {len(self.gates)}, fused {put}", *(f"  {g}" for g in self.gates)]
        rows += [f"  {e}" for e in self.edits]
        return "\n".join([*rows, *([f"  left as it was: {self.missed}"] if self.missed else [])])


@dataclass(frozen=True)
class Compilations:
    """What the backend has compiled, oldest first."""

    graphs: tuple[Compiled, ...]

    @property
    def gates(self) -> list[Find]:
        return [g for graph in self.graphs for g in graph.gates]

    @property
    def edits(self) -> list[Edit]:
        return [e for graph in self.graphs for e in graph.edits]

    @property
    def kernels(self) -> dict[str, Kernel]:
        return {f"{graph.name}.{n}": k for graph in self.graphs for n, k in graph.kernels.items()}

    def __str__(self) -> str:
        return "\n".join(map(str, self.graphs)) or "nothing compiled yet: call the compiled model"


def named(gm: fx.GraphModule) -> str:
    """[0/1] forward (model.py:12): the number that torch's own logs give the graph, and where its first line stands."""
    number = gm.meta.get("dynamo_compile_id") or torch._guards.CompileContext.current_compile_id()
    traces = (frames(n) for n in gm.graph.nodes if n.op != "placeholder")
    first = next((f"{name} ({where})" for trace in traces for where, name in trace[:1]), "")
    return f"[{number}] {first}".rstrip()


def fused(gm: fx.GraphModule, everywhere: bool, leave: str = "") -> Compiled:
    """Recognise, and put ops in the place of the regions around gates; `leave` is a reason to put none.

    Everything that can fail happens before the graph is touched.
    """
    reading = Reading(gm)
    found = finds(reading.canon, calls=True)
    gates = [replace(f, site=reading.site(f.node), shape=shape_seen(reading.own[f.node])) for f in found]
    edits = [Edit("fuse", site, "left", why) for site, why in reading.opaque.items()]
    kernels: dict[str, Kernel] = {}
    chosen: dict[str, list[tuple[Region, Callable[..., Tensor]]]] = {path: [] for path in reading.graphs}
    hidden = {n for graph in reading.graphs.values() for n in _transformed(graph)}
    for path, graph in reading.graphs.items():
        inside = [g for g in gates if g.node.graph is graph]
        grouped = grown(inside, graph, reading.modules[path], opens=False)
        covered = {n for region in grouped for n in region.nodes}
        edits += [Edit("fuse", g.site, "left", NOTHING) for g in inside if g.node not in covered]
        for region in grouped:
            own = _own(region, reading)
            op = FUNC if region.output in hidden else _op(region, own, everywhere, leave, kernels)
            if isinstance(op, str):
                edits.append(Edit("fuse", region.find.site, "left", op))
            else:
                edits.append(Edit("fuse", region.find.site, "put", region.name))
                chosen[path].append((own, op))
    for path, regions in chosen.items():
        if regions:
            placed(reading.modules[path].graph, regions)
            reading.modules[path].graph.lint()
            reading.modules[path].recompile()
    reading.forget()
    return Compiled(named(gm), tuple(gates), tuple(edits), kernels)


def _transformed(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes between the beginning and the end of a torch.func transform."""
    depth = 0
    for node in graph.nodes:
        depth += transforms(node)
        if depth:
            yield node


def _own(region: Region, reading: Reading) -> Region:
    """The same region in Dynamo's own graph."""
    nodes, inputs = (tuple(reading.own[n] for n in some) for some in (region.nodes, region.inputs))
    return replace(region, nodes=nodes, inputs=inputs)


def _op(region: Region, own: Region, everywhere: bool, leave: str, kernels: dict[str, Kernel]) -> Any:
    """The op that computes a region here, or why it stays as it is; its kernel is generated either way."""
    operands = [n.meta["example_value"] for n in own.inputs]
    odd = [type(x).__name__ for x in operands if x.layout != torch.strided or is_traceable_wrapper_subclass(x)]
    if odd:
        return f"an operand is a {odd[0]}, which has operators of its own"
    try:
        made = made_for(region)
    except GatecError as e:
        return f"{e.wanted}: {e.found}"
    kernels[unused(region.name, made.kernel, kernels)] = made.kernel
    if not everywhere and (leave or not any(x.is_cuda for x in operands)):
        return leave or EAGER
    return op_for(made, region)
