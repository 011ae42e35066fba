"""Parts of a graph that run only where a decision on data uses them: `If` around them, and only the chosen rows inside.

Read `skip` first. needs.py says what is needed when, rows.py which rows are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir
from onnx_ir.passes import common

from gatec.onnx.masks import Literal
from gatec.onnx.needs import Reader, needs, simplest, within
from gatec.onnx.packing import MADE, Branching, Packing, Seen
from gatec.onnx.rows import Mixed
from gatec.onnx.sizes import Sizes, dims

# What is worth a decision.
HEAVY = frozenset(
    ["Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"]
)
NOTHING = "nothing is skipped: no decision on data leaves a product of matrices or a convolution unused"
Clause = frozenset[Literal]


@dataclass(frozen=True)
class Skipped:
    """One part: how it is skipped, and on which clauses its rows depend."""

    text: str
    clauses: tuple[Clause, ...]


@dataclass
class Cone:
    """Nodes that are computed for nothing wherever one of the clauses does not hold."""

    nodes: list[ir.Node]
    clauses: list[Clause]

    def __str__(self) -> str:
        return " and ".join(" or ".join(sorted(map(str, clause))) for clause in self.clauses)

    @property
    def exits(self) -> list[ir.Value]:
        own = set(self.nodes)
        return [out for node in self.nodes for out in node.outputs if any(user not in own for user, _ in out.uses())]


def skip(model: ir.Model) -> tuple[list[Skipped], list[str]]:
    """Make every part of a plain model conditional that can be; what was made, and a line for what could not be."""
    sizes = Sizes(model.graph)
    made: list[Skipped] = []
    notes: list[str] = []
    refused: set[ir.Node] = set()
    graph, given = model.graph, set(model.graph.initializers.values())
    # The smallest first: what is left of a wider one when a part of it waits for more is a part by itself.
    while (cone := next((c for c in cones(graph, given) if not refused & set(c.nodes)), None)) is not None:
        if why := unfit(cone, sizes):
            refused |= set(cone.nodes)
            notes.append(why)
        else:
            made.append(conditional(graph, cone, sizes, given))
    common.RemoveUnusedNodesPass()(model)
    return made, notes or ([] if made else [NOTHING])


def unfit(cone: Cone, sizes: Sizes) -> str:
    for value in cone.exits:
        if value.dtype is None or not sizes.knows(dims(value)):
            return f"`{cone}` decides on {len(cone.nodes)} nodes, which run always: no size is known for {value.name}"
    return ""


def cones(graph: ir.Graph, given: set[ir.Value]) -> list[Cone]:
    """Every set of neighbouring nodes with a product in it that depends on one decision, the smallest first."""
    undecided(graph, given)
    need = needs(graph, given)
    order = {node: i for i, node in enumerate(graph)}
    reader = Reader(graph, given)
    found: dict[frozenset[ir.Node], list[Clause]] = {}
    for clause in dict.fromkeys(c for clauses in need.values() for c in clauses):
        deciding = behind([literal.base for literal in clause], set(order))
        wanted = {n for n, clauses in need.items() if any(c <= clause for c in clauses)} - deciding
        wanted = {n for n in wanted if MADE not in n.meta and not all(out in given for out in n.outputs)}
        for part in neighbours(graph, wanted - prelude(graph, wanted, reader)):
            if any(n.op_type in HEAVY and clause in need[n] for n in part):
                found.setdefault(frozenset(part), []).append(clause)
    for nodes, clauses in found.items():
        common = {c for n in nodes for c in need[n] if all(any(own <= c for own in need[m]) for m in nodes)}
        clauses += [c for c in common if not nodes & behind([literal.base for literal in c], set(order))]
    made = [Cone(sorted(nodes, key=order.__getitem__), ordered(simplest(clauses))) for nodes, clauses in found.items()]
    return sorted(made, key=lambda c: (len(c.nodes), order[c.nodes[0]]))


def ordered(clauses: Iterable[Clause]) -> list[Clause]:
    return sorted(clauses, key=lambda clause: sorted(map(str, clause)))


def prelude(graph: ir.Graph, wanted: set[ir.Node], reader: Reader) -> set[ir.Node]:
    """Selections before the first product, and what they select from: they stay outside, to be looked at themselves."""
    light: set[ir.Node] = set()
    for node in (n for n in graph if n in wanted and n.op_type not in HEAVY):
        if all(v is None or v.producer() not in wanted or v.producer() in light for v in node.inputs):
            light.add(node)
    return behind([out for node in light if reader.selects(node) for out in node.outputs], light)


def undecided(graph: ir.Graph, given: set[ir.Value]) -> None:
    """Adds what no input of the file decides: constants, sizes, and what is computed from these."""
    for node in graph:
        inner = [v for n in within(node) for v in n.inputs if v is not None and v.producer() not in within(node)]
        if node.op_type == "Shape" or all(v in given for v in [*node.inputs, *inner] if v is not None):
            given.update(node.outputs)


def behind(values: Sequence[ir.Value], among: set[ir.Node]) -> set[ir.Node]:
    """The nodes that compute these values."""
    found: set[ir.Node] = set()
    waiting = [node for v in values if (node := v.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node in found or node not in among:
            continue
        found.add(node)
        inputs = [*node.inputs, *(v for n in within(node) for v in n.inputs)]
        waiting += [before for v in inputs if v is not None and (before := v.producer()) is not None]
    return found


def neighbours(graph: ir.Graph, wanted: set[ir.Node]) -> list[set[ir.Node]]:
    """Connected parts; one that is left and entered again by way of other nodes is two."""
    level: dict[ir.Node, int] = {}
    web = nx.Graph()
    web.add_nodes_from(n for n in graph if n in wanted)
    for node in graph:
        inputs = [*node.inputs, *(v for n in within(node) for v in n.inputs)]
        before = [p for v in inputs if v is not None and (p := v.producer()) in level]
        level[node] = max((level[p] + (p in wanted and node not in wanted) for p in before), default=0)
        web.add_edges_from((p, node) for p in before if p in wanted and node in wanted and level[p] == level[node])
    return [set(part) for part in nx.connected_components(web)]


def conditional(graph: ir.Graph, cone: Cone, sizes: Sizes, given: set[ir.Value]) -> Skipped:
    """Put the cone into a branch of an If; of its rows only the chosen ones, if they are independent."""
    seen, reason = read_by(graph, cone, given), ""
    depth = min(min((len(literal.rows) for literal in found), default=0) for found in seen.values())
    packing, known = None, {x for found in seen.values() for x in found}
    placed = [clause for clause in cone.clauses if clause <= known]
    for count in range(depth, 0, -1):
        try:
            packing = Packing.of(cone.nodes, seen, placed, count, sizes)
            break
        except Mixed as mixed:
            reason = reason or f" ({mixed} mixes rows)"
    kind = "whole" if packing is None else "rows of" if len(packing.rows) == depth else "rows of the batch of"
    text = f"{kind} {len(cone.nodes)} nodes where `{cone}`{reason if packing is None else ''}"
    Branching(graph, cone.nodes, cone.exits, sizes).write(placed if packing else cone.clauses, packing)
    return Skipped(text, tuple(cone.clauses))


def read_by(graph: ir.Graph, cone: Cone, given: set[ir.Value]) -> Seen:
    """Under which literals of the cone each of its results is read."""
    reader, own, found = Reader(graph, given), set(cone.nodes), {}
    for value in cone.exits:
        uses = [(user, i) for user, i in value.uses() if user not in own]
        local = [clause for user, i in uses for clause in reader.placed(user, i)]
        found[value] = {x for clause in local if any(clause <= own for own in cone.clauses) for x in clause}
    return found
