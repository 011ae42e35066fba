"""A graph made plain before it is read: shapes filled in, sizes taken from the inputs, views that do nothing left out."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from gatec.onnx.columns import column, columns
from gatec.onnx.sizes import Sizes, attribute, before, constant, dims, operand, reshaped


def plain(model: ir.Model) -> None:
    common.ShapeInferencePass()(model)
    sizes = Sizes(model.graph)
    for node in list(model.graph):
        same = unchanged(node) or column(node) or sized(node, sizes)
        if node.op_type == "Reshape" and same is None:
            same = swapped(node, sizes) or unflattened(node, sizes)
        if same:
            replace(node.outputs[0], same)
        for i, value in columns(node).items():
            replace(node.outputs[i], value)
    common.RemoveUnusedNodesPass()(model)


def replace(old: ir.Value, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)


def unchanged(node: ir.Node) -> ir.Value | None:
    """The operand of a Slice of everything or of a Transpose that moves nothing."""
    x, out = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if x is None or out.is_graph_output():
        return None
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm", ()))
        return x if perm == sorted(perm) and perm else None
    if node.op_type == "Slice":
        starts, ends, *rest = (constant(v) for v in node.inputs[1:])
        everything = starts is not None and ends is not None and not starts.any() and (ends > 2**60).all()
        steps = rest[1] if len(rest) > 1 else np.ones(1)
        return x if everything and steps is not None and (steps == 1).all() else None
    return None


def sized(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """A shape asked of a value inside the graph is computed from the inputs; a Reshape learns what it returns."""
    if node.op_type == "Reshape" and dims(node.outputs[0]) is None:
        shown, wanted = dims(node.inputs[0]), sizes.elements(node.inputs[1])
        if shown is not None and wanted is not None and (after := reshaped(shown, wanted)) is not None:
            node.outputs[0].shape = ir.Shape(after)
    if node.op_type == "Transpose" and dims(node.outputs[0]) is None and (shown := dims(node.inputs[0])) is not None:
        perm = attribute(node, "perm") or range(len(shown))[::-1]
        node.outputs[0].shape = ir.Shape([shown[p] for p in perm])
    if node.op_type == "CastLike" and (like := operand(node, 1).dtype) is not None:
        tape = Tape()
        out = tape.op("Cast", [node.inputs[0]], {"to": like})
        out.shape, out.type = node.outputs[0].shape, node.outputs[0].type
        before(node, tape)
        return out
    shape = dims(node.inputs[0]) if node.inputs else None
    if node.op_type != "Shape" or shape is None or operand(node).is_graph_input() or not sizes.knows(shape):
        return None
    shape = shape[attribute(node, "start", 0) : attribute(node, "end")]
    tape = Tape()
    vector = sizes.vector(tape, shape)
    before(node, tape)
    return vector


def swapped(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """Reshape, Transpose and Reshape that together exchange the last two dimensions are one Transpose."""
    turn = operand(node).producer()
    if turn is None or turn.op_type != "Transpose" or list(attribute(turn, "perm", ())) != [0, 2, 1]:
        return None
    flat = operand(turn).producer()
    if flat is None or flat.op_type != "Reshape" or (shown := dims(flat.inputs[0])) is None or len(shown) < 3:
        return None
    inner, outer = sizes.elements(flat.inputs[1]), sizes.elements(node.inputs[1])
    last = list(shown[-2:])
    if inner is None or inner[1:] != last or outer != [*shown[:-2], *last[::-1]]:
        return None
    rank, tape = len(shown), Tape()
    out = tape.op("Transpose", [flat.inputs[0]], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
    out.shape, out.type = ir.Shape(outer), node.outputs[0].type
    before(node, tape)
    return out


def unflattened(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """A linear layer between two views, the first of which makes one dimension of several, needs no view behind it."""
    layer = operand(node).producer()
    if layer is None or layer.op_type != "Gemm" or attribute(layer, "transA", 0) or not plain_sum(layer):
        return None
    flat, shape, weight = operand(layer).producer(), dims(node.outputs[0]), operand(layer, 1)
    inner, outer = dims(operand(layer)), dims(layer.outputs[0])
    if flat is None or flat.op_type != "Reshape" or shape is None or inner is None or outer is None:
        return None
    if shape[-1] != outer[-1] or len(shape) < 3 or not sizes.knows(shape):
        return None
    tape = Tape()
    x = tape.op("Reshape", [operand(flat), sizes.vector(tape, [*shape[:-1], inner[-1]])])
    x.shape, x.type = ir.Shape([*shape[:-1], inner[-1]]), operand(layer).type
    turned = tape.op("Transpose", [weight], {"perm": [1, 0]}) if attribute(layer, "transB", 0) else weight
    turned.shape, turned.type = ir.Shape([inner[-1], outer[-1]]), weight.type
    out = tape.op("MatMul", [x, turned])
    for bias in layer.inputs[2:]:
        out.shape, out.type = ir.Shape(shape), x.type
        out = tape.op("Add", [out, bias])
    out.shape, out.type = ir.Shape(shape), x.type
    before(node, tape)
    return out


def plain_sum(layer: ir.Node) -> bool:
    """x @ w + b without factors, b for each feature."""
    biases = [dims(bias) for bias in layer.inputs[2:]]
    simple = attribute(layer, "alpha", 1.0) == 1 and attribute(layer, "beta", 1.0) == 1
    return simple and all(shape is not None and len(shape) == 1 for shape in biases)
