"""What a mask says: booleans, 0-1 numbers and weights that are exactly zero, read back to what decides them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from gatec.onnx.sizes import attribute, constant, dims, operand


@dataclass(frozen=True)
class Part:
    """One of several slices along an axis."""

    axis: int
    index: int
    of: int


Places = tuple[int | Part | None, ...]  # of each dimension of a mask, the dimension of the operand that it belongs to


@dataclass(frozen=True)
class Literal:
    """`base` (or one slice of it) is true or not zero; or, for a table of indices, equal to one of them."""

    base: ir.Value
    holds: bool = True
    pick: tuple[int, int] | None = None
    equals: int | None = None
    of: int = field(default=0, compare=False)
    places: tuple[int | None, ...] = field(default=(), compare=False)

    @property
    def contrary(self) -> Literal:
        return Literal(self.base, not self.holds, self.pick, self.equals)

    @property
    def family(self) -> object:
        return self.base, self.holds, None if self.pick is None else self.pick[0]

    def on_rows(self, rank: int) -> bool:
        """It belongs to neighbouring dimensions of the operand, and the features are not among them."""
        rows = self.rows
        return rows == tuple(range(rows[0], rows[0] + len(rows))) and rows[-1] < max(rank - 1, 1) if rows else True

    def placed(self, start: int) -> Literal:
        """The same condition on neighbouring dimensions from `start` on."""
        count = itertools.count(start)
        return replace(self, places=tuple(None if p is None else next(count) for p in self.places))

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(p for p in self.places if p is not None)

    def __str__(self) -> str:
        name = str(self.base.meta.get("of", self.base.name)) + (f"[{self.pick[1]}]" if self.pick else "")
        if self.equals is not None:
            return f"{name} == {self.equals}"
        return name if self.holds else f"not {name}"


Need = frozenset[frozenset[Literal]]
NOTHING: Need = frozenset()
NEVER: Need = frozenset([frozenset()])


def conditions(value: ir.Value | None, yes: bool, places: Places | None, equals: Part | None = None) -> Need:
    """Clauses that hold wherever `value` is true (or not zero), or where it is not."""
    shape, node = dims(value), value.producer() if value is not None else None
    if value is None or shape is None or places is None:
        return NOTHING
    if equals is None and (one(value) or zero(value)):
        return NOTHING if one(value) == yes else NEVER
    if node is None:
        return literal(value, yes, places, equals)
    if (inner := seen_through(node, places)) is not None:
        return conditions(node.inputs[0], yes, inner, equals)
    if equals is not None:
        return literal(value, yes, places, equals)
    if node.op_type == "Not":
        return conditions(node.inputs[0], not yes, places)
    if node.op_type in ("And", "Or") or (node.op_type in ("Mul", "Add") and yes):
        ways = [conditions(v, yes, narrowed(places, len(shape), v)) for v in node.inputs]
        return (
            resolved(ways[0] | ways[1])
            if (node.op_type in ("Or", "Add")) != yes
            else frozenset(a | b for a in ways[0] for b in ways[1])
        )
    if node.op_type == "Div" and yes:
        return conditions(node.inputs[0], yes, narrowed(places, len(shape), node.inputs[0]))
    if node.op_type == "Sub" and zero_one(node.inputs[1]) and one(node.inputs[0]):
        return conditions(node.inputs[1], not yes, narrowed(places, len(shape), node.inputs[1]))
    if node.op_type == "Where" and yes and value.dtype != ir.DataType.BOOL:
        return masked(node, places, len(shape))
    return literal(value, yes, places)


def resolved(need: Need) -> Need:
    """Of "x" and "not x or y" only "x" and "y" are left."""
    facts = [literal for clause in need if len(clause) == 1 for literal in clause]
    denied = {fact.contrary: fact.places for fact in facts}
    return frozenset(frozenset(x for x in clause if denied.get(x) != x.places) for clause in need)


def masked(node: ir.Node, places: Places, rank: int) -> Need:
    """Where(c, x, 0) is not zero only where c and x are."""
    for kept, other, side in ((1, 2, True), (2, 1, False)):
        if zero(node.inputs[other]):
            chosen = conditions(node.inputs[0], side, narrowed(places, rank, node.inputs[0]))
            return chosen | conditions(node.inputs[kept], True, narrowed(places, rank, node.inputs[kept]))
    return NOTHING


def literal(value: ir.Value, yes: bool, places: Places, equals: Part | None = None) -> Need:
    """The end of the road: a condition that is read off this value."""
    if equals is None and value.dtype != ir.DataType.BOOL and not sparse(value):
        return NOTHING
    parts = [(i, place) for i, place in enumerate(places) if isinstance(place, Part)]
    plain = tuple(p for p in places if not isinstance(p, Part))
    if equals is not None:
        found = Literal(value, yes, None, equals.index, equals.of, plain)
    elif parts:
        axis, part = parts[0]
        found = Literal(value, yes, (axis, part.index), None, part.of, plain)
    else:
        found = picked(value, yes, plain)
    return frozenset([frozenset([found])])


def picked(value: ir.Value, yes: bool, places: tuple[int | None, ...]) -> Literal:
    """One column of a table of choices is known by the table, whatever name it has; so is one of all indices."""
    node = value.producer()
    if node is not None and node.op_type == "Gather":
        index, shape = constant(node.inputs[1]), dims(node.inputs[0])
        axis = attribute(node, "axis", 0)
        if index is not None and index.size == 1 and shape is not None and isinstance(of := shape[axis], int):
            axis %= len(shape)
            inner = places if index.ndim == 0 else (*places[:axis], *places[axis + 1 :])
            base = uncast(operand(node))
            return Literal(base, yes, (axis, int(index.reshape(-1)[0]) % of), None, of, inner)
    return Literal(value, yes, places=places)


def uncast(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity") and zero_one(value):
        value = operand(node)
        node = value.producer()
    return value


def seen_through(node: ir.Node, places: Places) -> Places | None:
    """The dimensions of what a view shows; nothing if this is no view, or one that mixes dimensions."""
    x = node.inputs[0] if node.inputs else None
    before, after = dims(x), dims(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op_type == "Identity" or (node.op_type == "Cast" and faithful(node)):
        return places
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm", ()))
        return tuple(places[perm.index(i)] for i in range(len(before)))
    if node.op_type == "Expand":
        return narrowed(places, len(after), x)
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape"):
        if [d for d in before if d != 1] != [d for d in after if d != 1]:
            return None
        rest = iter([p for p, d in zip(places, after, strict=True) if d != 1])
        return tuple(None if d == 1 else next(rest) for d in before)
    return None


def narrowed(places: Places, rank: int, operand: ir.Value | None) -> Places | None:
    """The places of an operand that is broadcast to a value with these places."""
    shape = dims(operand)
    if shape is None:
        return None
    shift = rank - len(shape)
    return tuple(None if d == 1 else places[i + shift] for i, d in enumerate(shape))


def known(value: ir.Value | None) -> bool:
    """Whether something is said about where this value is zero."""
    shape = dims(value)
    return shape is not None and bool(conditions(value, True, tuple(range(len(shape)))))


def faithful(cast: ir.Node) -> bool:
    """A Cast under which nothing becomes zero that was not."""
    source, target = operand(cast).dtype, cast.outputs[0].dtype
    real = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return ir.DataType.BOOL in (source, target) or (source not in real) or (source in real and target in real)


def sparse(value: ir.Value | None) -> bool:
    """Numbers some of which are exactly zero because they were not chosen."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type in ("Cast", "Gather", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Split", "Identity"):
        return operand(node).dtype == ir.DataType.BOOL or sparse(node.inputs[0])
    if node.op_type in ("OneHot", "Hardmax"):
        return True
    if node.op_type == "ScatterElements":
        return zero(node.inputs[0])
    if node.op_type == "Where":
        return zero(node.inputs[1]) or zero(node.inputs[2])
    if node.op_type == "Softmax":
        return ruled_out(node.inputs[0])
    if node.op_type in ("Div", "Mul"):
        return any(sparse(v) for v in (node.inputs[:1] if node.op_type == "Div" else node.inputs))
    return False


def ruled_out(value: ir.Value | None) -> bool:
    """Logits some of which are minus infinity."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Where", "ScatterElements"):
        return False
    return any(filled(v, lambda n: bool((n <= -1e30).all())) for v in node.inputs)


def zero_one(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity"):
        return False
    return operand(node).dtype == ir.DataType.BOOL or zero_one(node.inputs[0])


def zero(value: ir.Value | None) -> bool:
    return filled(value, lambda n: not bool(n.any()))


def one(value: ir.Value | None) -> bool:
    return filled(value, lambda n: bool((n == 1).all()))


def filled(value: ir.Value | None, test: Callable[[np.ndarray], bool]) -> bool:
    """The same known number everywhere."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Expand", "Cast", "CastLike", "Unsqueeze", "Reshape", "Identity"):
        value = operand(node)
        node = value.producer()
    if node is not None and node.op_type == "ConstantOfShape":
        tensor = attribute(node, "value")
        return test(np.zeros(1) if tensor is None else tensor.numpy())
    number = constant(value)
    return number is not None and bool(number.size) and test(number)
