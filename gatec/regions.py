"""Regions: the pointwise nodes around a gate that one kernel computes, and what flows into them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatec.capture.guards import writes
from gatec.equation import ACTIVATIONS, Activation
from gatec.match import Canon
from gatec.recognise import Find, finds
from gatec.tidy import inline

POINTWISE = {
    "add", "sub", "rsub", "mul", "multiply", "truediv", "div", "neg", "pow", "square", "sigmoid", "silu", "gelu", "tanh", "relu",
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "abs", "erf", "softplus", "mish", "hardsigmoid",
    "hardswish", "leaky_relu", "elu", "celu", "selu", "softsign", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where",
    "lerp", "addcmul", "ge", "gt", "le", "lt", "eq", "ne", "to", "float", "double", "half", "bfloat16", "type_as", "detach",
    "relu6", "hardtanh", "positive", "logical_and", "logical_or", "logical_not",
}  # fmt: skip
HELPERS = {"dtype", "device"}


@dataclass(frozen=True)
class Region:
    """`nodes` in order, the last one is the output; `inputs` are the values that they read from outside."""

    find: Find
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "_", f"{self.find.kind}_{self.find.signal}").lower()

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def examples(self) -> list[Tensor]:
        return [n.meta["val"] for n in self.inputs]

    def function(self) -> Callable[..., Tensor]:
        """The region as a function of its inputs, without the module around it."""
        graph, env = fx.Graph(), {}
        for node in self.inputs:
            env[node] = graph.placeholder(node.name)
        for node in self.nodes:
            env[node] = graph.node_copy(node, lambda n: env[n])
        graph.output(env[self.output])
        found: Callable[..., Tensor] = fx.GraphModule(nn.Module(), graph).forward
        return found


def regions(module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None]) -> list[Region]:
    """The regions of one unit's graph. Activations that are modules are first written as functions."""
    _spell_activations(module, graph, graph_of)
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    taken: set[fx.Node] = set()
    found: list[Region] = []
    for find in finds(canon):
        if find.site != "" or find.node in taken:
            continue
        region = _grow(find, graph)
        if region is not None and not taken & set(region.nodes):
            taken.update(region.nodes)
            found.append(region)
    return found


def _spell_activations(module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None]) -> None:
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        term, path = canon.terms["", node], str(node.target)
        child = graph_of(path)
        if child is not None and term.op in ACTIVATIONS and sum(n.target == path for n in graph.nodes) == 1:
            inline(graph, path, child)
        elif type(module.get_submodule(path)).__module__ == "torch.nn.modules.activation" and term.op in FUNCTIONS:
            _as_function(graph, node, Activation(term.op, term.data))


FUNCTIONS: dict[str, Any] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu_tanh": F.gelu,
}  # fmt: skip


def _as_function(graph: fx.Graph, node: fx.Node, act: Activation) -> None:
    with graph.inserting_before(node):
        kwargs: dict[str, Any] = {"approximate": "tanh"} if act.name == "gelu_tanh" else {}
        new = graph.call_function(FUNCTIONS[act.name], (node.args[0],), kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _grow(find: Find, graph: fx.Graph) -> Region | None:
    """Backwards from the gate over pointwise nodes whose values nobody else reads: convex by construction."""
    order = list(graph.nodes)
    inside = {find.node}
    for node in reversed(order[: order.index(find.node)]):
        if node.users and all(u in inside for u in node.users) and (pointwise(node) or _helper(node)):
            inside.add(node)
    nodes = tuple(n for n in order if n in inside)
    inputs = {a: None for n in nodes for a in n.all_input_nodes if a not in inside}
    work = [n for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    if not pointwise(find.node) or len(work) < 2 or not all(isinstance(a.meta.get("val"), Tensor) for a in inputs):
        return None
    return Region(find, nodes, tuple(inputs))


def pointwise(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or writes(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_") in POINTWISE and not any(isinstance(a, (tuple, list)) for a in node.args)


def _helper(node: fx.Node) -> bool:
    """A dtype read off a tensor for a cast."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in HELPERS
