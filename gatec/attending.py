"""Where `gatec::linear_attention` meets other worlds: ONNX's own Scan."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import opset18 as op

from gatec.linear_attention import LINEAR_ATTENTION
from gatec.onnx import register_translation

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
LAST, BEFORE = -1, -2


def attended(q: ir.Value, k: ir.Value, v: ir.Value, decay: ir.Value | None = None, erase: ir.Value | None = None,
             write: ir.Value | None = None, state: ir.Value | None = None, log: bool = False) -> tuple[Any, Any]:  # fmt: skip
    """A Scan over the steps whose state is the matrix; that of half types is float32."""
    kinds = {x.dtype for x in (q, k, v, decay, erase, write) if x is not None}
    kind = kinds.pop() if len(kinds) == 1 else ir.DataType.FLOAT
    assert kind is not None and q.shape is not None
    wide = ir.DataType.FLOAT if kind in HALVES else kind
    decay = op.Exp(decay) if decay is not None and log else decay
    given = {"q": q, "k": k, "v": v, "decay": decay, "erase": erase, "write": write}
    steps = {name: op.Cast(x, to=wide) for name, x in given.items() if x is not None}
    start = op.Cast(_nothing(k, v) if state is None else state, to=wide)
    rank = len(q.shape)
    body = _body(list(steps), rank, wide, op.Constant(value_ints=[LAST]), op.Constant(value_ints=[BEFORE]))
    last = op.Scan(start, *steps.values(), body=body, num_scan_inputs=len(steps),
                   scan_input_axes=[rank - 2] * len(steps), scan_output_axes=[rank - 2])  # fmt: skip
    last.producer().resize_outputs(2)
    final, out = last.producer().outputs
    return op.Cast(out, to=kind), final


def _nothing(k: ir.Value, v: ir.Value) -> Any:
    """The state before anything was written."""
    assert v.shape is not None
    lead = op.Shape(v, end=len(v.shape) - 2)
    return op.ConstantOfShape(op.Concat(lead, op.Shape(k, start=LAST), op.Shape(v, start=LAST), axis=0))


def _body(names: list[str], rank: int, kind: ir.DataType, last: ir.Value, before: ir.Value) -> ir.Graph:
    """The state and one step of what moves in; the next state and what is read of it out."""
    nodes = []

    def value(name: str, rank: int) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape([None] * rank), type=ir.TensorType(kind))

    def node(name: str, *of: ir.Value, lower: int = 0) -> ir.Value:
        made = ir.node(name, list(of))
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(kind), ir.Shape([None] * (rank - lower))
        nodes.append(made)
        return made.outputs[0]

    def column(name: str) -> ir.Value:
        return node("Unsqueeze", step[name], last)

    def row(name: str) -> ir.Value:
        return node("Unsqueeze", step[name], before)

    start = state = value("state", rank)
    step = {name: value(f"step_{name}", rank - 1) for name in names}
    if "decay" in step:
        state = node("Mul", column("decay"), state)
    new = node("Mul", column("k"), row("v"))
    if "erase" in step:
        new = node("Sub", new, node("Mul", column("write"), node("MatMul", row("erase"), state)))
    state = node("Add", state, new)
    read = node("Squeeze", node("MatMul", row("q"), state), before, lower=1)
    return ir.Graph([start, *step.values()], [state, read], nodes=nodes, name="linear_attention")


register_translation(LINEAR_ATTENTION, attended)
