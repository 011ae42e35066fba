"""What fusing would save: the regions around the gates of every module, priced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn

from gatec.match.terms import join
from gatec.mixtures import mixtures
from gatec.program import Program
from gatec.recognise import Find
from gatec.regions import Region, around, gates
from gatec.rewrite import copied
from gatec.roofline import Price, price
from gatec.tidy import examples


@dataclass(frozen=True)
class Saving:
    """A region that one kernel could compute, in the module at `site`, and its price in the recorded call."""

    site: str
    region: str
    anchor: str
    price: Price

    def data(self) -> dict[str, Any]:
        p = self.price
        return {"site": self.site, "region": self.region, "anchor": self.anchor,
                "launches": p.launches, "bytes": p.before, "bytes_fused": p.after, "flops": p.flops}  # fmt: skip


def _inside(program: Program, path: str, child: str) -> fx.Graph | None:
    return program.graph_of(join(path, child))


def _regions(module: nn.Module, graph: fx.Graph, graph_of: Any) -> list[Region]:
    found = gates(module, graph, graph_of)
    whole = list(mixtures(found, graph, module))
    return [*whole, *around(found, graph, module, held={n for m in whole for n in m.nodes})[1]]


def savings(program: Program, found: Iterable[Find]) -> list[Saving]:
    """Modules that share a graph share its regions."""
    known: dict[int, list[Region]] = {}
    listed = []
    for path in dict.fromkeys(f.site for f in found):
        graph = program.graph_of(path)
        if graph is None:
            continue
        if id(graph) not in known:
            own = copied(graph)
            examples(program.module(path), own)
            known[id(graph)] = _regions(program.module(path), own, partial(_inside, program, path))
        listed += [Saving(path, r.name, r.anchor, price(r)) for r in known[id(graph)]]
    return listed
