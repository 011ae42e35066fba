"""Where `gatec::scan` meets other worlds: its generated kernel on CUDA, and ONNX's own Scan."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor

from gatec.derive import derive
from gatec.dispatch import CHOOSER, Side
from gatec.kernel import Kernel
from gatec.kernels.scan import render
from gatec.onnx import register_translation
from gatec.recurrence import LIBRARY, SCAN, form, room, states

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def scanned(a: ir.Value, b: ir.Value, h0: ir.Value | None = None, dim: int = 1, reverse: bool = False) -> Any:
    """A Scan whose body is one Mul and one Add; the state of half types is float32."""
    rank = max(len(_shape(a)), len(_shape(b)))
    dim, kind = dim % rank, b.dtype or ir.DataType.FLOAT
    wide = ir.DataType.FLOAT if kind in HALVES else kind
    moves = [_moves(x, dim - rank) for x in (a, b)]
    operands = [op.Cast(_aligned(x, rank), to=wide) for x in (a, b)]
    first = op.Add(*(op.Gather(x, op.Constant(value_int=0), axis=dim) for x in operands))
    start = op.Cast(op.Constant(value_float=0.0) if h0 is None else h0, to=wide)
    start = op.Expand(start, op.Shape(op.Add(first, start)))
    still = [None if m else op.Squeeze(x, op.Constant(value_ints=[dim])) for x, m in zip(operands, moves, strict=True)]
    steps = [x for x, m in zip(operands, moves, strict=True) if m]
    last = op.Scan(start, *steps, body=_body(still, rank - 1, wide), num_scan_inputs=len(steps),
                   scan_input_axes=[dim] * len(steps), scan_input_directions=[int(reverse)] * len(steps),
                   scan_output_axes=[dim], scan_output_directions=[int(reverse)])  # fmt: skip
    last.producer().resize_outputs(2)
    return op.Cast(last.producer().outputs[1], to=kind)


def _body(still: list[Any], rank: int, kind: ir.DataType) -> ir.Graph:
    """The state and a step of what moves in; a * h + b twice out: the next state, and what is kept."""

    def value(name: str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape([None] * rank), type=ir.TensorType(kind))

    def node(name: str, *of: ir.Value) -> ir.Node:
        made = ir.node(name, list(of))
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(kind), ir.Shape([None] * rank)
        return made

    before = value("state")
    decay, new = (value(f"step_{i}") if x is None else x for i, x in enumerate(still))
    product = node("Mul", decay, before)
    total = node("Add", product.outputs[0], new)
    kept = node("Sum", total.outputs[0])  # of one: a second name for it, which no pass takes away as it does Identity
    inputs = [before, *(x for x, known in zip((decay, new), still, strict=True) if known is None)]
    return ir.Graph(inputs, [total.outputs[0], kept.outputs[0]], nodes=[product, total, kept], name="recurrence")


def _shape(x: ir.Value) -> ir.Shape:
    assert x.shape is not None
    return x.shape


def _aligned(x: ir.Value, rank: int) -> ir.Value:
    missing = rank - len(_shape(x))
    return op.Unsqueeze(x, op.Constant(value_ints=list(range(missing)))) if missing else x


def _moves(x: ir.Value, dim: int) -> bool:
    """Whether it has steps along a dimension, which is counted from the end."""
    return len(_shape(x)) >= -dim and _shape(x)[dim] != 1


def _decay(a: Tensor) -> Tensor:
    return a


def _new(b: Tensor) -> Tensor:
    return b


@functools.cache
def kernel_for(decay: torch.dtype, new: torch.dtype) -> Kernel:
    """The scan of operands that are decay and new part themselves."""
    a, b = (derive(f, [torch.empty(1, dtype=d, device="meta")]) for f, d in ((_decay, decay), (_new, new)))
    return render("scan", "gatec::scan", a, b)


def on_cuda(a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The kernel where it was verified on this device and measured faster there, else PyTorch's own operators."""
    full, along, dtype = form(a, b, h0, dim)
    if dtype != b.dtype or dtype.is_complex or full != torch.broadcast_shapes(a.shape, b.shape) or not full.numel():
        return states(a, b, h0, dim, reverse)
    tensors = [a, b] if h0 is None else [a, b, h0]
    side = side_of(kernel_for(a.dtype, b.dtype), len(full), along, reverse, len(tensors))
    out: Tensor = (CHOOSER.way(side, tensors) or side.eager)(*tensors)
    like = room(b, full, dtype)
    return out if out.stride() == like.stride() else like.copy_(out)


@functools.cache
def side_of(kernel: Kernel, rank: int, along: int, reverse: bool, operands: int) -> Side:
    name = f"{'reverse' if reverse else 'forward'}-{along}-of-{rank}-{operands}"
    eager = partial(_eager, along, reverse)
    return Side(
        f"{kernel.name}_{kernel.key}", name, {"kernel": partial(_launched, kernel, along, reverse)}, eager, eager
    )


def _eager(along: int, reverse: bool, a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    return states(a, b, h0, along, reverse)


def _launched(kernel: Kernel, along: int, reverse: bool, a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    found: Tensor = kernel.load().forward(a, b, h0=h0, dim=along, reverse=reverse)
    return found


LIBRARY.impl("scan", on_cuda, "CUDA")
register_translation(SCAN, scanned)
