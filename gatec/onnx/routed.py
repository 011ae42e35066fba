"""Where `gatec::routed_convolution` becomes standard ONNX: every expert convolves the images that it has."""

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import opset18 as op

from gatec.onnx.operators import register_translation, split
from gatec.routed import ROUTED_CONVOLUTION


def routed(
    x: ir.Value, weight: ir.Value, deltas: ir.Value, mix: ir.Value, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> ir.Value:  # fmt: skip
    """One Gather and one Conv per expert. Kernels are sums of constants, which a runtime adds when it loads the file."""
    assert deltas.shape is not None and weight.shape is not None
    experts, rank = int(deltas.shape[0]), len(weight.shape)  # type: ignore[arg-type]
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    chosen = op.Cast(mix, to=ir.DataType.BOOL)
    alone = op.Not(op.Cast(op.ReduceMax(op.Cast(chosen, to=ir.DataType.INT32), one, keepdims=0), to=ir.DataType.BOOL))
    geometry = {"strides": [*stride], "pads": [*padding] * 2, "dilations": [*dilation], "group": groups}
    images = [op.Reshape(op.NonZero(alone), op.Constant(value_ints=[-1]))]
    parts = [op.Conv(op.Gather(x, images[0]), weight, **geometry)]
    ones = op.Constant(value_ints=[-1, *[1] * (rank - 1)])
    columns, kernels = split(op.Transpose(mix, perm=[1, 0]), experts), split(deltas, experts)
    marked = split(op.Transpose(chosen, perm=[1, 0]), experts)
    for column, marks, delta in zip(columns, marked, kernels, strict=True):
        own = op.Reshape(op.NonZero(op.Squeeze(marks, zero)), op.Constant(value_ints=[-1]))
        made = op.Conv(op.Gather(x, own), op.Add(weight, op.Squeeze(delta, zero)), **geometry)
        parts.append(op.Mul(made, op.Reshape(op.Gather(op.Squeeze(column, zero), own), ones)))
        images.append(own)
    rows = op.Concat(*parts, axis=0)
    shape = op.Concat(op.Shape(x, end=1), op.Shape(rows, start=1), axis=0)
    blank = op.Expand(op.CastLike(op.Constant(value_float=0.0), x), shape)
    out: ir.Value = op.ScatterND(blank, op.Unsqueeze(op.Concat(*images, axis=0), one), rows, reduction="add")
    return out


register_translation(ROUTED_CONVOLUTION, routed)
