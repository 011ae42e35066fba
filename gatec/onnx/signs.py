"""Which values of a traced program are never negative, whatever its inputs are."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload
from torch.fx import Node

ALWAYS = frozenset(["abs", "exp", "ge", "gt", "le", "lt", "eq", "ne", "new_zeros", "new_ones", "ones", "ones_like", "relu",
                    "sigmoid", "softmax", "_softmax", "softplus", "square", "zeros", "zeros_like"])  # fmt: skip
# Where the first operand is not negative: other orders, parts and sums of it.
AS_FIRST = frozenset([
    "_to_copy", "_unsafe_view", "alias", "amax", "clone", "contiguous", "cumsum", "detach", "expand", "flatten",
    "flip", "gather", "getitem", "index", "index_select", "mean", "permute", "reshape", "select", "slice", "sort",
    "squeeze", "sum", "t", "to", "topk", "transpose", "unflatten", "unsqueeze", "view",
])  # fmt: skip
AS_ALL = frozenset(["add", "div", "maximum", "minimum", "mul"])
SAME = frozenset(["alias", "clone", "contiguous", "detach"])


def nonnegative(value: Any) -> bool:
    """By the operators that it comes from; False where that is not known."""
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value >= 0
    name = name_of(value)
    if name in ("clamp", "clamp_min") and len(value.args) > 1 and value.args[1] is not None:
        return nonnegative(value.args[1])
    if name == "where":
        return all(nonnegative(v) for v in value.args[1:])
    if name == "scatter":
        return nonnegative(value.args[0]) and nonnegative(value.args[3])
    if name in ("full", "new_full", "full_like"):
        return nonnegative(value.args[-1])
    if name == "sub":
        return same(value.args[0]) is same(value.args[1])
    if name in AS_ALL:
        return all(nonnegative(v) for v in value.args[:2])
    return name in ALWAYS or (name in AS_FIRST and nonnegative(value.args[0]))


def same(value: Any) -> Any:
    """Behind copies of it."""
    while isinstance(value, Node) and name_of(value) in SAME:
        value = value.args[0]
    return value


def name_of(value: Any) -> str:
    """topk for aten.topk.default; nothing for what no operator gives"""
    target = value.target if isinstance(value, Node) else ""
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else getattr(target, "__name__", "")
