"""Sizes as products and sums of the file's axes: read off symbolic shapes, and computed again where they are needed."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

Dim = int | str
VIEWS_OF_A_SIZE = ("Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity")


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The shape with its symbols as text; nothing where any of it is unknown."""
    if value is None or value.shape is None:
        return None
    found = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if None in found else tuple(found)  # type: ignore[arg-type]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """What a value is in every run, if that is known."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Constant":
        attribute = next(iter(node.attributes.values()))
        return np.asarray(attribute.value.numpy() if attribute.name == "value" else attribute.value)
    if node is None and value.const_value is not None:
        return value.const_value.numpy()
    return None


def factors(shape: Sequence[Dim]) -> Counter[Dim]:
    """A product of sizes, with all numbers in one factor."""
    found: Counter[Dim] = Counter()
    number = 1
    for dim in shape:
        for part in _parts(tree(dim)):
            if isinstance(part, int):
                number *= part
            else:
                found[part] += 1
    found[number] += 1
    return found


def _parts(term: ast.expr) -> list[Dim]:
    if isinstance(term, ast.BinOp) and isinstance(term.op, ast.Mult):
        return _parts(term.left) + _parts(term.right)
    if isinstance(term, ast.Constant) and isinstance(term.value, int):
        return [term.value]
    return [ast.unparse(term)]


def tree(dim: Dim) -> ast.expr:
    return ast.parse(str(dim), mode="eval").body


def quotient(shape: Sequence[Dim], by: Sequence[Dim]) -> list[Dim] | None:
    """The factors that are left of a product when another is taken out of it; nothing if it is no part of it."""
    whole, part = factors(shape), factors(by)
    number, divisor = (next(f for f in fs if isinstance(f, int)) for fs in (whole, part))
    if not divisor or number % divisor:
        return None
    del whole[number], part[divisor]
    if part - whole:
        return None
    return [number // divisor, *(whole - part).elements()]


class Sizes:
    """Where each axis of the file can be read, and vectors of sizes computed from them."""

    def __init__(self, graph: ir.Graph) -> None:
        self.values: dict[str, tuple[ir.Value, int | None]] = {}
        self.serial = 0
        for value in graph.inputs:
            for axis, dim in enumerate(dims(value) or ()):
                if isinstance(dim, str) and dim.isidentifier():
                    self.values.setdefault(dim, (value, axis))

    def symbol(self) -> str:
        """A new name, for a size or a value."""
        self.serial += 1
        return f"chosen{self.serial}"

    def knows(self, shape: Sequence[Dim] | None, *more: str) -> bool:
        if shape is None:
            return False
        trees = [ast.walk(tree(dim)) for dim in shape]
        allowed = (ast.BinOp, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.operator, ast.USub)
        nodes = [node for walk in trees for node in walk]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        powers = any(isinstance(node, (ast.Pow, ast.Div)) for node in nodes)
        return all(isinstance(node, allowed) for node in nodes) and names <= {*self.values, *more} and not powers

    def vector(self, tape: Tape, shape: Sequence[Dim]) -> ir.Value:
        """The shape as a value of the graph."""
        if all(isinstance(dim, int) for dim in shape):
            return ints(tape, *[int(dim) for dim in shape])
        parts = [ints(tape, d) if isinstance(d, int) else self.size(tape, tree(d)) for d in shape]
        return parts[0] if len(parts) == 1 else tape.op("Concat", parts, {"axis": 0})

    def size(self, tape: Tape, term: ast.expr) -> ir.Value:
        if isinstance(term, ast.Name):
            value, axis = self.values[term.id]
            return value if axis is None else tape.op("Shape", [value], {"start": axis, "end": axis + 1})
        if isinstance(term, ast.BinOp):
            name = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.FloorDiv: "Div", ast.Mod: "Mod"}[type(term.op)]
            return tape.op(name, [self.size(tape, term.left), self.size(tape, term.right)])
        if isinstance(term, ast.UnaryOp):
            return tape.op("Neg", [self.size(tape, term.operand)])
        assert isinstance(term, ast.Constant) and isinstance(term.value, int)
        return ints(tape, term.value)

    def elements(self, value: ir.Value | None) -> list[Dim] | None:
        """What stands in a vector of sizes; -1 stays as it is."""
        found = constant(value)
        if found is not None:
            return [int(n) for n in found.reshape(-1)] if found.dtype.kind == "i" and found.ndim < 2 else None
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "Shape":
            shape = dims(node.inputs[0])
            start, end = (attribute(node, name) for name in ("start", "end"))
            return None if shape is None else list(shape[start:end])
        if node.op_type == "Concat":
            parts = [self.elements(part) for part in node.inputs]
            return None if None in parts else [dim for part in parts for dim in part or ()]
        inner = self.elements(node.inputs[0])
        if inner is None:
            return None
        if node.op_type in VIEWS_OF_A_SIZE:
            return inner
        if node.op_type == "Slice" and all(constant(v) is not None for v in node.inputs[1:]):
            numbers = [int(n.reshape(-1)[0]) for v in node.inputs[1:] if (n := constant(v)) is not None]
            return inner[slice(numbers[0], numbers[1], numbers[3] if len(numbers) > 3 else 1)]
        if node.op_type == "Gather" and (index := constant(node.inputs[1])) is not None:
            return [inner[int(i)] for i in index.reshape(-1)]
        return None


def reshaped(before: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """The shape that a Reshape gives, with its -1 worked out."""
    if -1 not in wanted:
        return tuple(wanted)
    rest = quotient(before, [dim for dim in wanted if dim != -1])
    if rest is None:
        return None
    number = math.prod(dim for dim in rest if isinstance(dim, int))
    names = [dim if dim.isidentifier() else f"({dim})" for dim in rest if isinstance(dim, str)]
    whole: Dim = "*".join([*([str(number)] if number != 1 or not names else []), *names]) if names else number
    return tuple(whole if dim == -1 else dim for dim in wanted)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """One that the operator cannot do without."""
    value = node.inputs[index]
    assert value is not None
    return value


def before(node: ir.Node, tape: Tape) -> None:
    """Puts what was written on a tape before a node."""
    assert node.graph is not None
    node.graph.insert_before(node, tape.nodes)


def ints(tape: Tape, *numbers: int) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
