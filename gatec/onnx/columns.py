"""One column of what was put together from columns is computed from these alone, not from all of them."""

import onnx_ir as ir
from onnx_ir.tape import Tape

from gatec.onnx.rows import POINTWISE
from gatec.onnx.sizes import attribute, before, constant, dims, ints, operand

WIDEST = 16  # columns


def column(node: ir.Node) -> ir.Value | None:
    """The value of a Slice or a Gather of one column; nothing if it depends on the others."""
    x = node.inputs[0] if node.inputs else None
    place, shape = one_column(node), dims(x)
    if x is None or shape is None or place is None:
        return None
    axis, index = place
    tape = Tape()
    found = picked(tape, x, axis, index)
    if found is None or not tape.nodes:
        return None
    if node.op_type == "Gather":
        found = tape.op("Squeeze", [found, ints(tape, axis)])
        found.type, found.shape = x.type, node.outputs[0].shape
    before(node, tape)
    return found


def columns(node: ir.Node) -> dict[int, ir.Value]:
    """The values of a Split into columns, by output."""
    shapes = [dims(out) for out in node.outputs]
    if node.op_type != "Split" or len(shapes) > WIDEST or any(shape is None for shape in shapes):
        return {}
    axis = attribute(node, "axis", 0) % len(shapes[0] or (1,))
    if any(shape is not None and shape[axis] != 1 for shape in shapes):
        return {}
    tape = Tape()
    found = {i: picked(tape, operand(node), axis, i) for i in range(len(shapes))}
    before(node, tape)
    return {i: value for i, value in found.items() if value is not None and value.producer() in tape.nodes}


def shown_by(node: ir.Node, axis: int, index: int) -> int | None:
    """Which column of its operand a Slice along that axis alone, such as a flip, shows at an index."""
    shape = dims(node.inputs[0])
    numbers = [constant(v) for v in node.inputs[1:]]
    if shape is None or len(numbers) < 3 or any(n is None or n.size != 1 for n in numbers):
        return None
    start, end, along, *steps = (int(n.reshape(-1)[0]) for n in numbers if n is not None)
    wide = shape[axis]
    if along % len(shape) != axis or not isinstance(wide, int):
        return None
    return range(wide)[slice(start, None if end < -wide else end, *steps)][index]


def one_column(node: ir.Node) -> tuple[int, int] | None:
    shape = dims(node.inputs[0]) if node.inputs else None
    if shape is None or node.op_type not in ("Slice", "Gather"):
        return None
    numbers = [constant(v) for v in node.inputs[1:]]
    if any(n is None or n.size != 1 for n in numbers):
        return None
    values = [int(n.reshape(-1)[0]) for n in numbers if n is not None]
    if node.op_type == "Gather":
        axis, start, alone = attribute(node, "axis", 0), values[0], numbers[0] is not None and numbers[0].ndim == 0
    else:
        axis, start = (values[2] if len(values) > 2 else 0), values[0]
        alone = values[1] == start + 1 and (len(values) < 4 or values[3] == 1)
    wide = shape[axis]
    fits = isinstance(wide, int) and 1 < wide <= WIDEST and 0 <= start < wide
    return (axis % len(shape), start) if alone and fits else None


def picked(tape: Tape, value: ir.Value, axis: int, index: int) -> ir.Value | None:
    """Column `index` along `axis`, which stays as a dimension of one."""
    node, shape, known = value.producer(), dims(value), constant(value)
    if known is not None:
        return tape.op("Constant", [], {"value": ir.tensor(known.take([index], axis))})
    if node is None or shape is None:
        return None
    out: ir.Value | None = None
    if node.op_type == "Slice" and (shown := shown_by(node, axis, index)) is not None:
        return picked(tape, operand(node), axis, shown)
    if node.op_type == "Concat" and attribute(node, "axis") % len(shape) == axis:
        whole = all((dims(part) or (0,) * len(shape))[axis] == 1 for part in node.inputs)
        return operand(node, index) if whole else None
    if node.op_type == "CumSum" and not attribute(node, "reverse", 0) and not attribute(node, "exclusive", 0):
        along = constant(node.inputs[1])
        if along is None or int(along.reshape(-1)[0]) % len(shape) != axis:
            return None
        parts = [picked(tape, operand(node), axis, i) for i in range(index + 1)]
        for part in parts:
            if part is None:
                return None
            out = part if out is None else tape.op("Add", [out, part])
            out.type, out.shape = value.type, part.shape
    elif node.op_type in POINTWISE.split() and len(node.outputs) == 1:
        parts = [alone(tape, v, axis - len(shape), index) for v in node.inputs]
        if any(part is None and v is not None for part, v in zip(parts, node.inputs, strict=True)):
            return None
        out = tape.op(node.op_type, parts, {name: a.value for name, a in node.attributes.items()})
    if out is not None and out.producer() in tape.nodes:
        out.type, out.shape = value.type, ir.Shape([1 if i == axis else d for i, d in enumerate(shape)])
    return out


def alone(tape: Tape, value: ir.Value | None, axis: int, index: int) -> ir.Value | None:
    """An operand's column, the axis counted from the end; itself where it is broadcast along that axis."""
    shape = dims(value)
    if value is None or shape is None:
        return None
    if -axis > len(shape) or shape[axis] == 1:
        return value
    return picked(tape, value, axis + len(shape), index)
