"""Under which conditions on data each value of a graph is needed at all.

A selection (`Where`, a product with a weight that is exactly zero for what was not chosen, `And`, ...) needs one operand
only where another one says so. A *need* is a conjunction of clauses, each a set of literals of which one must hold; it
travels from the outputs of the graph to its inputs, and where a value has several readers, it is needed where any of
them needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gatec.onnx.masks import Literal, Need, Part, conditions, known
from gatec.onnx.rows import POINTWISE
from gatec.onnx.sizes import attribute, constant, dims, operand

ALWAYS: Need = frozenset()
READS = "reads"  # of an If made here: under which clauses, and from which dimension on, it takes rows of a value
WIDEST, MOST = 8, 16  # literals of a clause, clauses of a need; what goes beyond is forgotten, which only skips less


def needs(graph: ir.Graph, given: set[ir.Value]) -> dict[ir.Node, Need]:
    """The need of every node, by what its readers do with it; `given` are values that no input decides."""
    found: dict[ir.Node, Need] = {}
    reader = Reader(graph, given)
    for node in reversed(list(graph)):
        if any(out.is_graph_output() for out in node.outputs):
            found[node] = ALWAYS
            continue
        uses = [(user, i) for out in node.outputs for user, i in out.uses()]
        found[node] = either(
            both(found[owner], reader.local(user, i)) for user, i in uses if (owner := reader.owner(user))
        )
    return found


def both(a: Need, b: Need) -> Need:
    return simplest(a | b)


def either(ways: Iterable[Need]) -> Need:
    found: Need | None = None
    for way in ways:
        found = way if found is None else simplest(a | b for a in found for b in way)
        if not found:
            break
    return found or ALWAYS


def simplest(clauses: Iterable[frozenset[Literal]]) -> Need:
    """Without clauses that always hold or that follow from shorter ones."""
    short = sorted({c for c in clauses if 0 < len(c) <= WIDEST and not certain(c)}, key=len)
    kept: list[frozenset[Literal]] = []
    for clause in short:
        if not any(other <= clause for other in kept):
            kept.append(clause)
    return frozenset(kept[:MOST])


def certain(clause: frozenset[Literal]) -> bool:
    """One of all the choices that there are is always taken; so is one of a condition and its contrary."""
    picks: dict[object, int] = {}
    for literal in clause:
        if literal.contrary in clause:
            return True
        if literal.of:
            picks[literal.family] = picks.get(literal.family, 0) + 1
            if picks[literal.family] == literal.of:
                return True
    return False


@dataclass
class Reader:
    """What one operand of one node is read for."""

    graph: ir.Graph
    given: set[ir.Value]
    order: dict[ir.Node, int] = field(init=False)
    inside: dict[ir.Node, ir.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.order = {node: i for i, node in enumerate(self.graph)}
        self.inside = {inner: node for node in self.graph for inner in within(node)}

    def owner(self, node: ir.Node) -> ir.Node:
        """The node of this graph that holds a reader in one of its branches."""
        return self.inside.get(node, node)

    def local(self, node: ir.Node, index: int) -> Need:
        """The conditions under which this node looks at this operand."""
        if node not in self.order or dims(node.inputs[index]) is None:
            return ALWAYS
        clauses: Need = ALWAYS
        if node.op_type == "Where" and index:
            clauses = self.where(node, 0, index, index == 1)
        elif node.op_type in ("Mul", "And", "Or") and self.first(node, 1 - index, index):
            clauses = self.where(node, 1 - index, index, node.op_type != "Or")
        elif node.op_type == "Concat":
            clauses = self.part(node, index)
        return simplest(c for c in clauses if all(x.base not in self.given for x in c))

    def placed(self, user: ir.Node, index: int, steps: int = 4) -> Need:
        """The conditions under which an operand is read here, or what is made of it without moving its dimensions."""
        value = operand(user, index)
        found = self.local(user, index) | self.packed(user, value)
        same = user in self.order and user.op_type in POINTWISE.split() and len(user.outputs) == 1
        if steps and same and len(dims(user.outputs[0]) or ()) == len(dims(value) or ()):
            return found.union(*(self.placed(after, i, steps - 1) for after, i in user.outputs[0].uses()))
        return found

    def packed(self, user: ir.Node, value: ir.Value) -> Need:
        """The conditions of a part made before, placed on the dimensions at which it takes rows from this value."""
        read = self.owner(user).meta.get(READS, {}).get(value)
        if read is None:
            return ALWAYS
        clauses, start = read
        return frozenset(frozenset(x.placed(start) for x in clause) for clause in clauses)

    def selects(self, node: ir.Node) -> bool:
        return any(self.local(node, i) for i in range(len(node.inputs)))

    def first(self, node: ir.Node, mask: int, other: int) -> bool:
        """Of two masks the earlier one decides whether the later one is looked at."""
        a, b = node.inputs[mask], node.inputs[other]
        if node.op_type == "Mul" and not known(b):
            return True
        return self.place(a) < self.place(b)

    def place(self, value: ir.Value | None) -> int:
        node = value.producer() if value is not None else None
        return -1 if node is None else self.order.get(node, -1)

    def where(self, node: ir.Node, mask: int, chosen: int, yes: bool) -> Need:
        c, v = node.inputs[mask], node.inputs[chosen]
        maker = v.producer() if v is not None else None
        joined = int(attribute(maker, "axis")) if maker is not None and maker.op_type == "Concat" else None
        found = conditions(c, yes, aligned(c, v))
        if node.op_type in ("Where", "Mul"):
            found = rows_of(found, v)
        # A choice among slices is one for each slice.
        return frozenset(clause for clause in found if not any(joined in x.rows for x in clause))

    def part(self, node: ir.Node, index: int) -> Need:
        """A slice of what was put together is needed where it is chosen; only if that is all that is done with it."""
        axis, v = attribute(node, "axis"), node.inputs[index]
        shape = dims(v)
        if shape is None or shape[axis] != 1:
            return ALWAYS
        part = Part(axis % len(shape), index, len(node.inputs))
        ways = [self.chosen(user, i, part, operand(node, index)) for user, i in node.outputs[0].uses()]
        return either(ways) if ways and not node.outputs[0].is_graph_output() else ALWAYS

    def chosen(self, node: ir.Node, index: int, part: Part, v: ir.Value) -> Need:
        """What a reader of the whole says about one part of it."""
        if node not in self.order:
            return ALWAYS
        whole = node.inputs[index]
        if node.op_type == "Mul":
            w = node.inputs[1 - index]
            places = aligned(w, whole)
        elif node.op_type == "Einsum":
            w = node.inputs[1 - index] if len(node.inputs) == 2 else None
            places = lettered(node, index)
        elif node.op_type == "MatMul":
            w = node.inputs[1 - index]
            places = multiplied(w, whole, index)
        elif node.op_type == "GatherElements" and index == 0 and attribute(node, "axis", 0) == part.axis:
            w, places = node.inputs[1], tuple(range(len(dims(whole) or ())))
        elif node.op_type == "GatherND" and index == 0:
            w, places = looked_up(node, part.axis)
        else:
            return ALWAYS
        if w is None or places is None or part.axis not in places:
            return ALWAYS
        marked = tuple(part if place == part.axis else place for place in places)
        if node.op_type.startswith("Gather"):
            return rows_of(conditions(w, True, marked, equals=part), v)
        return rows_of(conditions(w, True, marked), v)


def within(node: ir.Node) -> list[ir.Node]:
    graphs = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [inner for graph in graphs for inner in graph.all_nodes()]


def aligned(mask: ir.Value | None, value: ir.Value | None) -> tuple[int | None, ...] | None:
    """To which dimension of the operand each one of the mask belongs, where both are broadcast."""
    a, b = dims(mask), dims(value)
    if a is None or b is None:
        return None
    shift = len(b) - len(a)
    places = tuple(None if dim == 1 else i + shift for i, dim in enumerate(a))
    return None if any(p is not None and (p < 0 or b[p] == 1) for p in places) else places


def lettered(node: ir.Node, index: int) -> tuple[int | None, ...] | None:
    """The same for an Einsum of two operands, letter by letter."""
    terms = str(attribute(node, "equation")).replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or "." in "".join(terms):
        return None
    mask, whole = terms[1 - index], terms[index]
    return (
        tuple(whole.index(letter) if letter in whole else None for letter in mask) if set(mask) <= set(whole) else None
    )


def looked_up(node: ir.Node, axis: int) -> tuple[ir.Value | None, tuple[int | None, ...] | None]:
    """The column of indices for an axis; where other columns count rows, their axes are those of its dimensions."""
    columns = node.inputs[1].producer() if node.inputs[1] is not None else None
    if (
        columns is None
        or columns.op_type != "Concat"
        or attribute(node, "batch_dims", 0)
        or axis >= len(columns.inputs)
    ):
        return None, None
    values = [v for column in columns.inputs if (v := unwrapped(column)) is not None]
    shape = dims(values[axis]) if len(values) == len(columns.inputs) else None
    if shape is None:
        return None, None
    counted: dict[int, int] = {}
    for other, value in enumerate(values):
        own = dims(value) or ()
        moving = [i + len(shape) - len(own) for i, d in enumerate(own) if d != 1]
        if len(moving) == 1 and counts(value):
            counted[moving[0]] = other
    if any(d != 1 and i not in counted for i, d in enumerate(shape)):
        return None, None
    return values[axis], (*(counted.get(i) for i in range(len(shape))), axis)


def unwrapped(column: ir.Value | None) -> ir.Value | None:
    node = column.producer() if column is not None else None
    while (
        node is not None and node.op_type in ("Unsqueeze", "Expand", "Reshape") and len(dims(node.outputs[0]) or ()) > 1
    ):
        column = node.inputs[0]
        node = column.producer() if column is not None else None
    return column


def counts(value: ir.Value) -> bool:
    """0, 1, 2, ..."""
    number, node = constant(value), value.producer()
    if number is not None:
        return bool((number.reshape(-1) == np.arange(number.size)).all())
    if node is None or node.op_type != "Range":
        return False
    start, step = constant(node.inputs[0]), constant(node.inputs[2])
    return start is not None and step is not None and not start.any() and bool((step == 1).all())


def multiplied(mask: ir.Value | None, whole: ir.Value | None, index: int) -> tuple[int | None, ...] | None:
    """The same for a product of matrices, where the mask is a single row before, or a single column behind."""
    a, b = dims(mask), dims(whole)
    if a is None or b is None or len(a) != len(b) or len(a) < 2 or a[-2 if index else -1] != 1:
        return None
    batch: list[int | None] = [None if dim == 1 else i for i, dim in enumerate(a[:-2])]
    inner = len(b) - (2 if index else 1)
    return (*batch, None, inner) if index else (*batch, inner, None)


def rows_of(need: Need, value: ir.Value | None) -> Need:
    """Only conditions on whole rows: a mask over features, or over the keys of attention, chooses nothing to skip."""
    rank = len(dims(value) or ())
    return frozenset(c for c in need if all(x.on_rows(rank) for x in c))
