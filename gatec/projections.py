"""Linear layers in front of a gate: which of them a kernel may compute, and their call as a function of their weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gatec.capture.guards import SELF, Changed, hold

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def multiplies(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is F.linear


def operands(node: fx.Node) -> list[Any]:
    """Rows, weight and, where there is one, bias of a linear function."""
    names = ("input", "weight", "bias")
    given = [*node.args, *(node.kwargs.get(name) for name in names[len(node.args) :])]
    return [a for a in given if a is not None]


def projects(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node is a linear layer with ordinary weights; a call of a submodule only where `module` is given."""
    if multiplies(node):
        return _ordinary([a.meta.get("val") for a in (*operands(node), node) if isinstance(a, fx.Node)])
    if node.op != "call_module" or module is None or len(node.args) != 1 or node.kwargs:
        return False
    layer = module.get_submodule(str(node.target))
    if not plain(layer):
        return False
    outside = [a.meta.get("val") for a in (*node.all_input_nodes, node)]
    return _ordinary([outside[0], *layer.parameters(recurse=False), *outside[1:]])


def plain(layer: Any) -> bool:
    """Whether a layer is torch's own linear layer, and nothing else happens when it is called."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or any(getattr(layer, h) for h in HOOKS):
        return False
    weight = layer._parameters.get("weight")
    return weight is not None and (type(weight) is nn.Parameter or not is_traceable_wrapper_subclass(weight))


def _ordinary(values: Sequence[Any]) -> bool:
    """Rows, weight, bias and result: dense, of one type that a kernel multiplies."""
    if len(values) < 3 or not all(isinstance(v, Tensor) and v.layout is torch.strided for v in values):
        return False
    rows: Tensor = values[0]
    weight: Tensor = values[1]
    if any(map(is_traceable_wrapper_subclass, values)) or rows.dim() < 2 or weight.dim() != 2:
        return False
    return rows.dtype in DTYPES and all(v.dtype is rows.dtype for v in values)


def alone(node: fx.Node, inputs: Collection[fx.Node]) -> bool:
    """Whether nothing else reads the weights."""
    if node.op == "call_module":
        same = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
        return len(same) == 1
    read = operands(node)[1:]
    return len(set(read)) == len(read) and all(len(a.users) == 1 and a not in inputs for a in read)


def opened(node: fx.Node, module: nn.Module | None) -> fx.Node:
    """The call of a layer as a function of its weights, in a graph that holds only as long as the layer is plain."""
    if node.op != "call_module" or module is None:
        return node
    graph, path = node.graph, str(node.target)
    layer, me = module.get_submodule(path), SELF
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        asked = graph.call_function(plain_at, (me, path))  # type: ignore[arg-type]
        asked.meta["val"] = True
        graph.call_function(hold, (asked, True, f"{path} is a plain linear layer"))
    with graph.inserting_before(node):
        read = []
        for name, value in layer.named_parameters(recurse=False):
            read.append(graph.get_attr(f"{path}.{name}"))
            read[-1].meta["val"] = value
        new = graph.create_node("call_function", F.linear, (node.args[0], *read), name=node.name)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def plain_at(module: nn.Module, path: str) -> bool:
    """Whether the layer at `path` is plain; if not, the graph does not hold."""
    if not plain(module.get_submodule(path)):
        raise Changed(path)
    return True
