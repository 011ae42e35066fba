"""How regions grow: backwards from each gate, over what nobody else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, fx, nn

from gatec.match import Canon
from gatec.match.terms import shape_of
from gatec.projections import alone, opened, projects
from gatec.recognise import Find, finds
from gatec.regions.nodes import helper, pointwise, rowwise
from gatec.regions.region import Region
from gatec.regions.spelled import spelled
from gatec.regions.surroundings import Surroundings


def regions(
    module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None], *, opens: bool = True
) -> list[Region]:
    """The regions of one unit's graph. Modules that a region may hold are first written as functions."""
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    if spelled(module, graph, canon):
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
    return grown((f for f in finds(canon, calls=True) if f.site == ""), graph, module, opens=opens)


def grown(found: Iterable[Find], graph: fx.Graph, module: nn.Module, *, opens: bool = True) -> list[Region]:
    """The region around each gate of one graph; a node belongs to one region. `opens`: layers may become functions."""
    surroundings = Surroundings.of(graph, module)
    taken: set[fx.Node] = set()
    regions: list[Region] = []
    for find in list(found):
        region = _grow(find, surroundings) if find.node not in taken else None
        if region is not None and not taken & set(region.nodes):
            region = _multiplied(region, surroundings, module if opens else None, taken)
            taken.update(region.nodes)
            regions.append(region)
    return regions


def _grow(find: Find, surroundings: Surroundings) -> Region | None:
    """Backwards from the gate over pointwise nodes whose values nobody else reads: convex by construction."""
    end, place = find.node, surroundings.place
    inside, asked = {end}, set(end.all_input_nodes)
    inputs: set[fx.Node] = set()
    while asked:
        node = max(asked, key=place.__getitem__)
        asked.remove(node)
        joins = all(u in inside for u in node.users) and (pointwise(node) or rowwise(node) or helper(node))
        if joins and surroundings.waits(node, end):
            inside.add(node)
            asked.update(node.all_input_nodes)
        else:
            inputs.add(node)
    nodes = tuple(sorted(inside, key=place.__getitem__))
    work = [n for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    if not pointwise(end) or len(work) < 2 or not all(isinstance(a.meta.get("val"), Tensor) for a in inputs):
        return None
    read = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside)
    return Region(find, nodes, tuple(read))


def _multiplied(region: Region, around: Surroundings, module: nn.Module | None, taken: set[fx.Node]) -> Region:
    """The region with the linear layers in front of it that nobody else reads, where it is pointwise."""
    end, inside = region.output, set(region.nodes)
    if region.anchor != "pointwise":
        return region
    found = [
        n for n in region.inputs
        if n not in taken and inside.issuperset(n.users) and around.waits(n, end)
        and shape_of(n) == shape_of(end) and projects(n, module) and alone(n, region.inputs)
    ]  # fmt: skip
    if not found:
        return region
    nodes = []
    for node in sorted(found, key=around.place.__getitem__):
        nodes.append(opened(node, module))
        around.place[nodes[-1]] = around.place[node]
    every = (*nodes, *region.nodes)
    read = dict.fromkeys(a for n in every for a in n.all_input_nodes if a not in every)
    return Region(region.find, every, tuple(read))
