"""Decisions that a graph was captured under, moved to its front; and which nodes write to their surroundings."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from gatec.capture.structure import PLAIN
from gatec.errors import Refused


class Miss(Exception):
    """A decision that a graph was captured under does not hold for this call."""


def hold(found: Any, wanted: Any, where: str) -> None:
    """Stop a graph whose Python decision at `where` (file:line) does not hold for the tensors at hand."""
    if found != wanted:
        raise Miss(where)


SIZES: set[Any] = {getattr, operator.getitem, hold, *(getattr(operator, n) for n in (
    "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "neg", "truediv", "not_"
))}  # fmt: skip


def hoist(graph: fx.Graph) -> None:
    """Move every decision that only reads sizes of arguments to the front, so that a miss costs nothing."""
    nodes = list(graph.nodes)
    early: set[fx.Node] = set()
    for node in nodes:
        sizes = node.op == "call_function" and node.target in SIZES
        sizes = sizes or (node.op == "call_method" and node.target in ("size", "numel", "__len__"))
        known = all(a.op == "placeholder" or a in early for a in node.all_input_nodes)
        if sizes and known and not isinstance(node.meta.get("val"), Tensor):
            early.add(node)
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in early and (node.target is hold or any(u in needed for u in node.users)):
            needed.add(node)
    last = [n for n in nodes if n.op == "placeholder"]
    anchor = last[-1] if last else None
    for node in nodes:
        if node in needed and anchor is not None:
            anchor.append(node)
            anchor = node
    touched, outside = False, _storages(n for n in nodes if n.op in ("placeholder", "get_attr"))
    for node in graph.nodes:
        if node.target is hold and touched:
            raise Refused(f"it decides something about sizes after it has written to its surroundings ({node.args[2]})")
        inside = node.op != "call_module" and not outside & _storages(node.all_input_nodes[:1])
        touched = touched or (writes(node) and not inside)


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    values = (n.meta.get("val") for n in nodes)
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}


def writes(node: fx.Node) -> bool:
    """Whether the node changes anything but its own result: in place, or through an object that is handed on."""
    if node.op == "call_module":
        return any(not isinstance(a.meta.get("val"), (Tensor, tuple, list, dict, *PLAIN)) for a in node.all_input_nodes)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        inplace = (name.endswith("_") and not name.startswith("_")) or (name.startswith("i") and hasattr(operator, name) and
                    getattr(operator, name) is node.target and name in INPLACE)  # fmt: skip
        return inplace or node.target is operator.setitem or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return False


INPLACE = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"}
