"""nn.LSTM, nn.GRU and nn.RNN as one operator each: traced, they would be a step for each step of their input.

onnx.ai/onnx/operators: LSTM, GRU, RNN. Their gates stand in another order there, which a fold of constants settles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor

from gatec.onnx.operators import register_translation, split

VF: Any = torch._VF
STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
PLAIN = {kind: getattr(VF, kind) for kind in STATES}
# Where each of PyTorch's gates stands in ONNX: input, forget, cell, output; reset, update, new.
ORDERS = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
LIBRARY = torch.library.Library("gatec", "FRAGMENT")
OPERANDS = "Tensor x, Tensor[] state, Tensor[] weights, bool bias, int layers, bool both, bool batch_first"


def _run(kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor], bias: bool, layers: int, both: bool,
         batch_first: bool) -> tuple[Tensor, ...]:  # fmt: skip
    given = state if kind == "lstm" else state[0]
    found: tuple[Tensor, ...] = PLAIN[kind](x, given, weights, bias, layers, 0.0, False, both, batch_first)
    return found


def _meant(x: Tensor, state: list[Tensor], weights: list[Tensor], bias: bool, layers: int, both: bool,
           batch_first: bool) -> tuple[Tensor, ...]:  # fmt: skip
    return x.new_empty(*x.shape[:2], state[0].shape[-1] * (1 + both)), *(torch.empty_like(s) for s in state)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Calls of torch.nn's recurrent layers become the operator; packed sequences and projections stay as they are."""
    for kind in PLAIN:
        setattr(VF, kind, _caller(kind))
    try:
        yield
    finally:
        for kind, plain in PLAIN.items():
            setattr(VF, kind, plain)


def _caller(kind: str) -> Any:
    def call(x: Tensor, *args: Any) -> Any:
        if not (len(args) == 8 and isinstance(args[2], bool)) or (args[5] and args[4]):
            return PLAIN[kind](x, *args)
        given, weights, bias, layers, _, _, both, batch_first = args
        state = list(given) if kind == "lstm" else [given]
        if len(weights) != (4 if bias else 2) * layers * (1 + both):
            return PLAIN[kind](x, *args)
        return getattr(torch.ops.gatec, kind).default(x, state, list(weights), bias, layers, both, batch_first)

    return call


def recurrent(kind: str, x: ir.Value, state: Sequence[ir.Value], weights: Sequence[ir.Value], bias: bool, layers: int,
              both: bool, batch_first: bool) -> tuple[Any, ...]:  # fmt: skip
    """A node for each layer, with its weights in ONNX's order."""
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    each, ways, options = len(weights) // layers, 1 + both, _options(kind, state[0], both)
    starts = [split(s, layers) for s in state]
    ends: list[list[Any]] = [[] for _ in state]
    for layer in range(layers):
        mine = weights[layer * each : (layer + 1) * each]
        found = _layer(kind, x, [s[layer] for s in starts], _stacked(kind, mine, ways, bias), options)
        x = op.Reshape(op.Transpose(found[0], perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        for end, last in zip(ends, found[1:], strict=True):
            end.append(last)
    out = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    return out, *(op.Concat(*end, axis=0) for end in ends)


def _stacked(kind: str, weights: Sequence[ir.Value], ways: int, bias: bool) -> list[Any]:
    """W, R and B of one layer, each [directions, gates * hidden, ...]."""
    each = len(weights) // ways
    ways_of = [weights[i * each : (i + 1) * each] for i in range(ways)]
    ordered = [[_ordered(kind, w) for w in way] for way in ways_of]
    first = op.Constant(value_ints=[0])
    joined = [[way[0], way[1], *([op.Concat(way[2], way[3], axis=0)] if bias else [])] for way in ordered]
    return [op.Concat(*(op.Unsqueeze(w, first) for w in same), axis=0) for same in zip(*joined, strict=True)]


def _ordered(kind: str, weight: ir.Value) -> Any:
    order = ORDERS.get(kind)
    if order is None:
        return weight
    gates = split(weight, len(order))
    return op.Concat(*(gates[i] for i in order), axis=0)


def _options(kind: str, state: ir.Value, both: bool) -> dict[str, Any]:
    assert state.shape is not None
    options: dict[str, Any] = {"hidden_size": int(state.shape[-1]), "direction": "bidirectional" if both else "forward"}  # type: ignore[arg-type]
    if kind == "gru":
        options["linear_before_reset"] = 1
    if kind.startswith("rnn"):
        options["activations"] = [kind.removeprefix("rnn_").capitalize()] * (1 + both)
    return options


def _layer(kind: str, x: ir.Value, start: list[Any], weights: list[Any], options: dict[str, Any]) -> Sequence[Any]:
    w, r, *b = weights
    node = {"lstm": op.LSTM, "gru": op.GRU}.get(kind, op.RNN)
    found: Sequence[Any] = node(x, w, r, b[0] if b else None, None, *start, **options)
    return found


for _kind, _states in STATES.items():
    LIBRARY.define(f"{_kind}({OPERANDS}) -> (Tensor{', Tensor' * _states})")
    LIBRARY.impl(_kind, partial(_run, _kind), "CompositeExplicitAutograd")
    torch.library.register_fake(f"gatec::{_kind}", _meant)
    register_translation(getattr(torch.ops.gatec, _kind).default, partial(recurrent, _kind))
