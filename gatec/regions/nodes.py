"""Which nodes a region may hold: pointwise work, rows from rows, and what only serves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from gatec.capture import inside
from gatec.capture.guards import writes
from gatec.capture.values import Apply
from gatec.recurrence import SCAN, linear_recurrence
from gatec.rowform import LONGEST

POINTWISE = {
    "add", "sub", "rsub", "mul", "multiply", "truediv", "div", "neg", "pow", "square", "sigmoid", "silu", "gelu", "tanh", "relu",
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "abs", "erf", "softplus", "mish", "hardsigmoid",
    "hardswish", "leaky_relu", "elu", "celu", "selu", "softsign", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where",
    "lerp", "addcmul", "ge", "gt", "le", "lt", "eq", "ne", "to", "float", "double", "half", "bfloat16", "type_as", "detach",
    "relu6", "hardtanh", "positive", "logical_and", "logical_or", "logical_not",
    "masked_fill", "logsigmoid", "log_sigmoid", "exp2", "log2", "sin", "cos", "sign", "floor", "ceil", "round", "addcdiv",
    "tanhshrink", "softshrink", "hardshrink", "threshold", "bitwise_and", "bitwise_or", "bitwise_not", "and", "or", "invert",
    "negative", "absolute", "subtract", "divide", "true_divide", "clip", "zeros_like", "ones_like",
}  # fmt: skip
HELPERS = {"dtype", "device"}
REDUCING = {"mean", "sum", "amax", "amin", "var", "std"}
ROWWISE = {"rms_norm", "layer_norm", "softmax", "log_softmax", "normalize"}


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


def scans(node: fx.Node) -> bool:
    """Whether a node is a linear recurrence over time, all states at once."""
    return node.op == "call_function" and node.target in (linear_recurrence, SCAN)


def convolves(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (F.conv1d, F.conv2d)


def pointwise(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or writes(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    given = (*node.args, *node.kwargs.values())
    if called(node) == "to" and any(isinstance(a, (str, torch.device)) for a in given):
        return False  # to a device by its name: what a region computes is the same on every device
    if isinstance(node.target, Apply):
        return _owned(node)
    return called(node).strip("_") in POINTWISE and not any(isinstance(a, (tuple, list)) for a in node.args)


def _owned(node: fx.Node) -> bool:
    """Whether an autograd function computes forwards what a region may hold."""
    graph = inside(node)
    work = [n for n in graph.nodes if n.op.startswith("call")] if graph is not None else []
    for n in work:
        n.meta.setdefault("val", node.meta["val"])
    shapes = [a.meta["val"].shape for a in node.all_input_nodes]
    return bool(work) and all(map(pointwise, work)) and torch.broadcast_shapes(*shapes) == node.meta["val"].shape


def rowwise(node: fx.Node) -> bool:
    """Whether a node computes rows from rows, or one number for each of them, and keeps it as a dimension."""
    name = called(node)
    if node.op not in ("call_function", "call_method") or name not in REDUCING | ROWWISE or not node.all_input_nodes:
        return False
    before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)) or before.dim() < 2:
        return False
    row = before.shape[-1]
    if type(row) is not int or not 1 < row <= LONGEST:
        return False
    if name in REDUCING:
        return tuple(after.shape) == (*before.shape[:-1], 1)
    return _over_the_row(name, node, before.dim())


def _over_the_row(name: str, node: fx.Node, rank: int) -> bool:
    first, options = (node.args[1:2] or (None,))[0], node.kwargs
    if name.endswith("_norm"):
        sizes = options.get("normalized_shape", first)
        return isinstance(sizes, (tuple, list)) and len(sizes) == 1 and type(sizes[0]) is int
    given: Any = options.get("dim", node.args[2] if name == "normalize" and len(node.args) > 2 else first)
    plain = bool(options.get("p", 2) == 2) and options.get("dtype") is None
    return plain and type(given) is int and given in (-1, rank - 1)


def helper(node: fx.Node) -> bool:
    """A dtype read off a tensor for a cast."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in HELPERS
