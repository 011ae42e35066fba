"""Row form: a graph whose only reductions run over the last dimension and keep it, whatever stands in front of it.

Broadcasting and autograd write views around that, which say nothing new; they are taken out, so that one kernel, or one
eager graph, serves every number of rows.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gatec.errors import GatecError

aten = torch.ops.aten
LONGEST = 4096  # elements of a row that one program holds without spilling
REDUCTIONS = {aten.sum.dim_IntList, aten.amax.default, aten.amin.default}
VIEWS = {
    aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims,
}  # fmt: skip
PLAIN = {
    aten.add_.Scalar: aten.add.Scalar, aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor,
}  # fmt: skip


class BroadcastWeights(TorchFunctionMode):
    """Norms multiply by their weights apart, so that weights may have any shape that broadcasts."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm):
            return _norm(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _norm(function: Any, x: Tensor, shape: Any, weight: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    centred = function in (F.layer_norm, torch.layer_norm)
    bias = (rest[0] if rest else options.pop("bias", None)) if centred else None
    eps: Any = rest[centred] if len(rest) > centred else options.get("eps", 1e-5 if centred else None)
    weight = options.get("weight", weight)
    y = F.layer_norm(x, shape, eps=eps) if centred else F.rms_norm(x, shape, eps=eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def row_form(graph: fx.Graph, shape: torch.Size) -> None:
    """In place; `shape` is that of the whole region. Refuses what is not a function of rows."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if node.target in PLAIN and len(node.all_input_nodes[0].users) == 1:
            node.target = PLAIN[node.target]
        if node.target in REDUCTIONS:
            _reduction(node, shape)
        elif node.target in VIEWS:
            _view(node, shape)
        elif any(_misplaced(a, shape) for a in node.all_input_nodes):
            raise _refusal(node)
    graph.eliminate_dead_code()


def _reduction(node: fx.Node, shape: torch.Size) -> None:
    """Over the row, which stays as a dimension of size one."""
    value = _value(node.all_input_nodes[0])
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    over = {d % value.dim() for d in ([given] if isinstance(given, int) else given or range(value.dim()))}
    if over == {value.dim() - 1} and value.shape[-1] == 1:
        node.replace_all_uses_with(node.all_input_nodes[0])
        return
    if over != {value.dim() - 1} or _misplaced(node.all_input_nodes[0], shape):
        raise _refusal(node)
    if not kept and not all(u.target in VIEWS and _value(u).shape[-1:] == (1,) for u in node.users):
        raise _refusal(node)
    node.args, node.kwargs = (node.args[0], [-1], True), {}


def _view(node: fx.Node, shape: torch.Size) -> None:
    """Drop what only repeats, or adds dimensions of size one in front of the row, or gives a value per row its one."""
    before, after = _value(node.all_input_nodes[0]), _value(node)
    per_row = before.dim() < len(shape) and after.shape == (*before.shape, 1)
    same = [n for n in before.shape if n != 1] == [n for n in after.shape if n != 1]
    aligned = before.shape[-1:] in (after.shape[-1:], (), (1,))
    if not (per_row or (aligned and (same or node.target is aten.expand.default))):
        raise _refusal(node)
    node.replace_all_uses_with(node.all_input_nodes[0])


def _misplaced(node: fx.Node, shape: torch.Size) -> bool:
    value = _value(node)
    return bool(value.dim()) and (value.shape[-1] not in (1, shape[-1]) or (len(shape) > value.dim() > 1))


def _value(node: fx.Node) -> Tensor:
    found: Any = node.meta.get("val")
    if not isinstance(found, Tensor):
        raise _refusal(node)
    return found


def _refusal(node: fx.Node) -> GatecError:
    values = (a.meta.get("val") for a in node.all_input_nodes)
    sizes = ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor))
    return GatecError(
        "a function of rows: pointwise work, and reductions over the last dimension",
        found=f"{node.target} of {sizes}",
        where=str(node.meta.get("where", "")),
    )
