"""The branch that computes a part of a graph where it is needed: whole, or on the chosen rows only, put back in their places."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gatec.onnx.masks import Literal
from gatec.onnx.needs import READS
from gatec.onnx.rows import SHAPED, Mixed, Span, Spans, packed, shape, spans
from gatec.onnx.sizes import Dim, Sizes, ints, quotient

Clause = frozenset[Literal]
Seen = dict[ir.Value, set[Literal]]  # the conditions under which each result is read, placed on its dimensions
MADE = "made"  # marks what was written here
I64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


@dataclass
class Packing:
    """How every value of a part is read when only some rows of it are left."""

    rows: tuple[Dim, ...]
    name: str
    exits: dict[ir.Value, Span]
    reads: dict[ir.Node, Spans]
    full: dict[ir.Value, tuple[Dim, ...]]
    shapes: dict[ir.Value, list[Dim]]
    taken: dict[ir.Value, Span] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Sequence[ir.Node], seen: Seen, clauses: Sequence[Clause], count: int, sizes: Sizes) -> Packing:
        """Raises if the rows of some node are not independent of each other."""
        if not clauses:
            raise Mixed("a decision that is not about rows")
        kinds = {row_sizes(literal)[:count] for found in seen.values() for literal in found}
        exits = {v: Span(next(iter(found)).rows[0], count) for v, found in seen.items()}
        places = [{literal.rows[:count] for literal in found} for found in seen.values()]
        rows = kinds.pop()
        if kinds or any(len(p) > 1 for p in places) or 1 in rows:
            raise Mixed("a decision about other rows")
        if any(shape(v)[s.start : s.start + count] != rows for v, s in exits.items()):
            raise Mixed("a result of other size")
        ways, reads = spans(nodes, exits, rows)
        name = sizes.symbol()
        shapes = {}
        for out in (out for node in nodes for out in node.outputs):
            if (span := next(iter(ways[out]), None)) is not None:
                shapes[out] = packed(shape(out), span, rows, name)
        made = cls(rows, name, exits, reads, {v: shape(v) for v in exits}, shapes)
        made.check(sizes)
        return made

    def check(self, sizes: Sizes) -> None:
        """Every size that will be computed is known."""
        for node, read in self.reads.items():
            for value, span in zip(node.inputs, read, strict=True):
                if span is None or value is None or value in self.shapes:
                    continue
                own = [*[1] * -span.start, *shape(value)]
                merged = span.count < len(self.rows)
                if not sizes.knows(own) or (merged and quotient(own[span.start : span.start + 1], self.rows) != [1]):
                    raise Mixed(f"{value.name}, whose shape is not known,")
            target = node.outputs[0]
            if node.op_type in SHAPED and target in self.shapes and not sizes.knows(self.shapes[target], self.name):
                raise Mixed(f"{target.name}, whose shape is not known,")


def row_sizes(literal: Literal) -> tuple[Dim, ...]:
    own = list(shape(literal.base))
    if literal.pick:
        del own[literal.pick[0]]
    return tuple(d for d, place in zip(own, literal.places, strict=True) if place is not None)


def deciding(clauses: Sequence[Clause]) -> dict[ir.Value, tuple[Sequence[Clause], int]]:
    """Where the rows lie in the values that decide."""
    found = {}
    for literal in (x for clause in clauses for x in clause if x.pick is None):
        places = [i for i, place in enumerate(literal.places) if place is not None]
        if places and places == list(range(places[0], places[0] + len(places))):
            found[literal.base] = clauses, places[0]
    return found


class Branching:
    """Writes one If: the decision before it, the part in one branch, zeros in the other."""

    def __init__(self, graph: ir.Graph, nodes: Sequence[ir.Node], exits: Sequence[ir.Value], sizes: Sizes) -> None:
        self.graph, self.nodes, self.exits, self.sizes = graph, list(nodes), list(exits), sizes
        self.before, self.start, self.end, self.other = Tape(), Tape(), Tape(), Tape()

    def write(self, clauses: Sequence[Clause], packing: Packing | None) -> None:
        tape, results = self.before, self.exits
        zeros = [self.zeros(value) for value in self.exits]
        flat = tape.op("Reshape", [self.mask(clauses, packing), ints(tape, -1)])
        if packing is None:
            count = tape.op("ReduceSum", [tape.op("Cast", [flat], {"to": I64})], {"keepdims": 1})
            count = tape.op("Reshape", [count, ints(tape, 1)])
        else:
            where = tape.op("Reshape", [tape.op("NonZero", [flat]), ints(tape, -1)])
            count = tape.op("Shape", [where])
            self.sizes.values[packing.name] = (count, None)
            self.pack(packing, where)
            results = self.unpack(packing, flat)
        some = tape.op("Squeeze", [tape.op("Greater", [count, ints(tape, 0)]), ints(tape, 0)])
        choice = self.join(some, results, zeros)
        if packing is not None:
            reads = {value: (clauses, span.start) for value, span in packing.taken.items()}
            for node in [*self.before.nodes, choice]:
                node.meta[READS] = {**deciding(clauses), **reads}

    def mask(self, clauses: Sequence[Clause], packing: Packing | None) -> ir.Value:
        """Where every clause holds; as one number if rows are not told apart."""
        depth = len(packing.rows) if packing else 0
        ways = [[self.literal(x, depth) for x in sorted(clause, key=str)] for clause in clauses]
        return self.folded("And", [self.folded("Or", way) for way in ways])

    def folded(self, operator: str, values: list[ir.Value]) -> ir.Value:
        return functools.reduce(lambda a, b: self.before.op(operator, [a, b]), values)

    def literal(self, literal: Literal, depth: int) -> ir.Value:
        tape, value = self.before, literal.base
        if literal.pick:
            value = tape.op("Gather", [value, number(tape, literal.pick[1])], {"axis": literal.pick[0]})
        if literal.equals is not None:
            value = tape.op("Equal", [value, number(tape, literal.equals)])
        elif literal.base.dtype != BOOL:
            # Not "greater than zero": a weight that is not a number is a choice too.
            zero = tape.op("CastLike", [number(tape, 0), literal.base])
            value = tape.op("Not", [tape.op("Equal", [value, zero])])
        if not literal.holds:
            value = tape.op("Not", [value])
        alone = [i for i, place in enumerate(literal.places) if place is None]
        if alone:
            value = tape.op("Squeeze", [value, ints(tape, *alone)])
        rank = len(literal.places) - len(alone)
        if rank == depth:
            return value
        axes = ints(tape, *range(depth, rank))
        count = tape.op("ReduceSum", [tape.op("Cast", [value], {"to": I64}), axes], {"keepdims": 0})
        return tape.op("Cast", [count], {"to": BOOL})

    def pack(self, packing: Packing, where: ir.Value) -> None:
        """Every operand from before the part is replaced by its chosen rows."""
        ready: dict[tuple[ir.Value, Span], ir.Value] = {}
        for node, read in packing.reads.items():
            for i, (value, span) in enumerate(zip(node.inputs, read, strict=True)):
                if value is not None and span is not None and value not in packing.shapes:
                    packing.taken[value] = span
                    if (value, span) not in ready:
                        ready[value, span] = self.chosen(packing, value, span, where)
                    node.replace_input_with(i, ready[value, span])
            if node.op_type in SHAPED and node.outputs[0] in packing.shapes:
                after = self.sizes.vector(self.start, packing.shapes[node.outputs[0]])
                node.replace_input_with(SHAPED[node.op_type], after)
        for value, after_packing in packing.shapes.items():
            value.shape = ir.Shape(after_packing)

    def chosen(self, packing: Packing, value: ir.Value, span: Span, where: ir.Value) -> ir.Value:
        tape, x, own, rows = self.start, value, list(shape(value)), list(packing.rows)
        if span.start < 0:
            x, own = tape.op("Unsqueeze", [x, ints(tape, *range(-span.start))]), [*[1] * -span.start, *own]
        start, stop = max(span.start, 0), max(span.start, 0) + span.count
        if span.count == len(rows) and own[start:stop] != rows:
            own[start:stop] = rows
            x = tape.op("Expand", [x, self.sizes.vector(tape, own)])
        if span.count > 1:
            x = tape.op("Reshape", [x, self.sizes.vector(tape, [*own[:start], -1, *own[stop:]])])
        x = tape.op("Gather", [x, where], {"axis": start})
        if span.count > 1:
            x = tape.op("Unsqueeze", [x, ints(tape, *range(start, stop - 1))])
        x.name, x.type = f"{value.name}_{packing.name}_{start}", value.type
        x.shape = ir.Shape(packed(own, Span(start, span.count), rows, packing.name))
        x.meta["of"] = value.meta.get("of", value.name)
        return x

    def unpack(self, packing: Packing, flat: ir.Value) -> list[ir.Value]:
        """Rows that were not chosen get one of those that were: nobody reads them."""
        tape, many = self.end, len(packing.rows) > 1
        places = tape.op("CumSum", [tape.op("Cast", [flat], {"to": I64}), number(tape, 0)])
        inverse = tape.op("Max", [tape.op("Sub", [places, ints(tape, 1)]), ints(tape, 0)])
        made = []
        for value in self.exits:
            start, own, x = packing.exits[value].start, packing.full[value], value
            if many:
                behind = own[start + len(packing.rows) :]
                x = tape.op("Reshape", [x, self.sizes.vector(tape, [*own[:start], -1, *behind])])
            x = tape.op("Gather", [x, inverse], {"axis": start})
            made.append(tape.op("Reshape", [x, self.sizes.vector(tape, own)]) if many else x)
        return made

    def zeros(self, value: ir.Value) -> ir.Value:
        assert value.dtype is not None
        zero = ir.tensor(np.zeros(1, value.dtype.numpy()))
        return self.other.op("ConstantOfShape", [self.sizes.vector(self.other, shape(value))], {"value": zero})

    def join(self, some: ir.Value, results: list[ir.Value], zeros: list[ir.Value]) -> ir.Node:
        """The If takes over the names and the readers of what the part gave."""
        joined = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in self.exits]
        own = set(self.nodes)
        for value, new in zip(self.exits, joined, strict=True):
            for user, i in [(user, i) for user, i in value.uses() if user not in own and user not in self.end.nodes]:
                user.replace_input_with(i, new)
            value.meta["of"] = value.meta.get("of", value.name)
            value.name = f"{value.name}_{self.sizes.symbol()}"
        for tape in (self.before, self.start, self.end, self.other):
            for node in tape.nodes:
                node.outputs[0].name = node.outputs[0].name or f"{self.sizes.symbol()}_{node.op_type}"
        self.graph.remove(self.nodes)
        branch = ir.Graph([], results, nodes=[*self.start.nodes, *self.nodes, *self.end.nodes], name="chosen")
        other = ir.Graph([], zeros, nodes=self.other.nodes, name="otherwise")
        choice = ir.node("If", [some], {"then_branch": branch, "else_branch": other}, outputs=joined)
        for node in [*self.before.nodes, choice]:
            node.meta[MADE] = True
        self.graph.extend([*self.before.nodes, choice])
        self.graph.sort()
        return choice


def number(tape: Tape, value: int) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})
