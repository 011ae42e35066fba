"""Layers in front of a region as functions: activations, norms, softmax, and small modules written into the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from gatec.capture.guards import hold
from gatec.equation import ACTIVATIONS
from gatec.match import Canon
from gatec.regions.nodes import helper, pointwise, rowwise
from gatec.tidy import inline


def spelled(module: nn.Module, graph: fx.Graph, canon: Canon) -> bool:
    """Write modules that a region may hold as functions: activations, norms, softmax; whether there were any."""
    changed = False
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        term, path = canon.terms["", node], str(node.target)
        child, layer = canon.graph_of(path), module.get_submodule(path)
        if child is not None and (term.op in ACTIVATIONS or _small(child)) and not _hooked(layer):
            if sum(n.target == path for n in graph.nodes) > 1:
                continue
            inline(graph, path, child)
        elif type(layer).__module__ == "torch.nn.modules.activation" and term.op in FUNCTIONS:
            _as_function(graph, node, FUNCTIONS[term.op], (), FORMS.get(term.op, {}))
        elif type(layer) in LAYERS:
            _as_function(graph, node, *_layer(graph, node, path, layer))
        else:
            continue
        changed = True
    return changed


FUNCTIONS: dict[str, Any] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu_tanh": F.gelu,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {"gelu_tanh": {"approximate": "tanh"}}
LAYERS = {nn.LayerNorm: F.layer_norm, nn.RMSNorm: F.rms_norm, nn.Softmax: F.softmax}


def _small(graph: fx.Graph) -> bool:
    """Whether a child does nothing but what a region can hold: a norm or a gate that somebody wrote as a module."""
    work = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    held = all(pointwise(n) or rowwise(n) or helper(n) or n.target is hold for n in work)
    return held and bool(work)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _layer(graph: fx.Graph, node: fx.Node, path: str, layer: nn.Module) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function of one of torch's layers, with its parameters read in front of the call."""
    if isinstance(layer, nn.Softmax):
        return F.softmax, (), {"dim": layer.dim}
    sizes: Any = layer.normalized_shape
    options: dict[str, Any] = {"eps": layer.eps}
    with graph.inserting_before(node):
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if value is not None:
                options[name] = graph.get_attr(f"{path}.{name}")
                options[name].meta["val"] = value
    return LAYERS[type(layer)], (tuple(sizes),), options


def _as_function(graph: fx.Graph, node: fx.Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(function, (node.args[0], *args), kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
