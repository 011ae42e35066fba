"""How regions grow: backwards from each gate, over what nobody else reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from gatec.match import Canon
from gatec.match.terms import shape_of
from gatec.projections import alone, opened, projects
from gatec.recognise import Find, finds
from gatec.regions.convolutions import convolved
from gatec.regions.hoisting import hoisted
from gatec.regions.nodes import called, helper, pointwise, rowwise, scans
from gatec.regions.recurrences import recurrence
from gatec.regions.region import Region
from gatec.regions.spelled import spelled
from gatec.regions.surroundings import Surroundings
from gatec.regions.written import written

SUMS = {"add", "sub", "rsub"}
MOST = 24  # operands of one kernel


def regions(
    module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None], *, opens: bool = True
) -> list[Region]:
    """The regions of one unit's graph. Modules that a region may hold are first written as functions."""
    return surveyed(module, graph, graph_of, opens=opens)[1]


def surveyed(
    module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None], *, opens: bool = True
) -> tuple[list[Find], list[Region]]:
    """The gates of one unit's graph, which changes for them, and the regions around them."""
    return around(gates(module, graph, graph_of), graph, module, opens=opens)


def gates(module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None]) -> list[Find]:
    """The gates of one unit's graph, in which modules that a region may hold become functions."""
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    if spelled(module, graph, canon):
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
    return [f for f in finds(canon, calls=True) if f.site == ""]


def around(
    found: Sequence[Find], graph: fx.Graph, module: nn.Module, *, opens: bool = True, held: Collection[fx.Node] = ()
) -> tuple[list[Find], list[Region]]:
    """The gates and the regions around them; nodes of `held` belong to others already."""
    found = list(found)
    for rewritten in (written, hoisted):
        moved = rewritten([f for f in found if f.node not in held and not scans(f.node)], graph, module)
        found = [replace(f, node=moved[f.node]) if f.node in moved else f for f in found]
    copies: dict[fx.Node, fx.Node] = {}
    grouped = grown(found, graph, module, opens=opens, held=held, copies=copies)
    return [replace(f, node=copies[f.node]) if f.node in copies else f for f in found], grouped


def grown(
    found: Iterable[Find], graph: fx.Graph, module: nn.Module, *, opens: bool = True, held: Iterable[fx.Node] = (),
    copies: dict[fx.Node, fx.Node] | None = None,
) -> list[Region]:  # fmt: skip
    """The region around each gate of one graph; a node belongs to one region.

    `opens`: layers may become functions, and work may move; `copies` says which nodes stand for which then.
    """
    copies = {} if copies is None else copies
    surroundings = Surroundings.of(graph, module)
    taken = set(held)
    regions: list[Region] = []
    for find in sorted(found, key=lambda f: not scans(f.node)):  # they take the gates in front of them
        if find.node in taken:
            continue
        if scans(find.node):
            several = iter([recurrence(find, surroundings, module if opens else None, taken, copies)])
        else:
            several = _around(find, surroundings, taken)
        for region in several:
            if region is None or taken & set(region.nodes):
                continue
            region = convolved(region, surroundings, module if opens else None, taken, copies)
            region = _multiplied(region, surroundings, module if opens else None, taken)
            if worth(region):
                taken.update(region.nodes)
                regions.append(region)
                break
    return regions


def _around(find: Find, surroundings: Surroundings, taken: set[fx.Node]) -> Iterator[Region | None]:
    """The region that ends behind a gate; where that only adds, those of what it adds."""
    ends = [find.node, *(find.node.all_input_nodes if called(find.node).strip("_") in SUMS else [])]
    for end in ends:
        if end not in taken and pointwise(end):
            yield _grow(find, end, surroundings, taken)


def _grow(find: Find, end: fx.Node, surroundings: Surroundings, taken: set[fx.Node]) -> Region | None:
    """Backwards from a node, then forwards with what only reads it, as long as one kernel holds it."""
    region = _behind(find, end, surroundings)
    while region is not None:
        further = _reader(region.output, surroundings, region.nodes)
        wider = _behind(find, further, surroundings) if further is not None and further not in taken else None
        if wider is None or len(wider.inputs) > max(MOST, len(region.inputs)) or taken & set(wider.nodes):
            break
        region = wider
    return region


def _reader(end: fx.Node, surroundings: Surroundings, nodes: Iterable[fx.Node]) -> fx.Node | None:
    """The pointwise node that alone reads `end`, of the same shape, if everything may wait for it."""
    if len(end.users) != 1:
        return None
    (user,) = end.users
    same = pointwise(user) and shape_of(user) == shape_of(end)
    return user if same and all(surroundings.waits(n, user) for n in nodes) else None


def _behind(find: Find, end: fx.Node, surroundings: Surroundings) -> Region | None:
    """Backwards over pointwise nodes whose values nobody else reads: convex by construction."""
    place = surroundings.place
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
    if not pointwise(end) or not all(isinstance(a.meta.get("val"), Tensor) for a in inputs):
        return None
    read = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside)
    return Region(find, nodes, tuple(read)) if read else None


def worth(region: Region) -> bool:
    """Whether there is something to fuse: two nodes, or one whose gradients are several."""
    work = [n for n in region.nodes if isinstance(n.meta.get("val"), Tensor)]
    floats = [a for a in region.inputs if a.meta["val"].is_floating_point()]
    return len(work) > 1 or (len(floats) > 1 and called(work[0]).strip("_") not in SUMS)


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
