"""A module seen from outside: the values of its call, one call of its own forward, and its result.

The graph of a module that is not looked into. It holds for every call with the same argument structure, whatever the
forward does: constants, caches and results of any class are passed on as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.capture.around import first, with_first
from gatec.capture.record import Call

OWN = "_gatec_own"  # the method of a rewritten class that runs the module as it is inside


def shell(forward: Callable[..., Any], call: Call) -> fx.Graph:
    """placeholders -> own forward -> its first tensor -> the same result with that tensor in its place."""
    graph, mode = fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True)

    def leaf(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(leaf(v) for v in value)
        if type(value) is dict:
            return {k: leaf(v) for k, v in value.items()}
        return _known(graph.placeholder(f"x{len(graph.nodes)}"), value, mode)

    args, kwargs = tuple(leaf(a) for a in call.args), {k: leaf(v) for k, v in call.kwargs.items()}
    own = graph.call_module(OWN, args, kwargs)
    value = _known(graph.call_function(first, (own,)), first(call.output), mode)
    graph.output(graph.call_function(with_first, (own, value)))
    return graph


def uncalled(graph: fx.Graph) -> None:
    """Leave out the module's own call where a gate has taken its place; for modules that return a tensor and nothing else."""
    own: fx.Node = next(n for n in graph.nodes if n.target == OWN)
    if any(user.target is not with_first for user in own.users):
        return
    for user in list(own.users):
        user.replace_all_uses_with(user.args[1])  # type: ignore[arg-type]
        graph.erase_node(user)
    graph.erase_node(own)


def door(forward: Callable[..., Any], graph: fx.Graph, side: str) -> fx.Node | None:
    """The node of a shell that holds the module's first tensor argument ("in") or the first tensor it returns ("out")."""
    own: fx.Node = next(n for n in graph.nodes if n.target == OWN)
    if side == "out":
        return next(n for n in own.users if n.target is first)
    return next((n for n in taken(forward, own) if "val" in n.meta), None)


def _known(node: fx.Node, value: Any, mode: FakeTensorMode) -> fx.Node:
    """The node with an example of its value, without data, where it is a tensor."""
    if isinstance(value, Tensor):
        with mode:
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return node


def taken(forward: Callable[..., Any], call: fx.Node) -> list[fx.Node]:
    """The nodes that a call of a module takes, in the order of its forward's parameters."""
    order = {name: i for i, name in enumerate(inspect.signature(forward).parameters)}
    kwargs = sorted(call.kwargs, key=lambda k: order.get(k, len(order)))
    found: list[fx.Node] = []
    fx.node.map_arg((*call.args, *(call.kwargs[k] for k in kwargs)), found.append)
    return found
