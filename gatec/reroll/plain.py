"""A graph made plain before loops are looked for: parameters in front, cells inlined, nothing written in place if avoidable."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture import unit_of
from gatec.capture.guards import INPLACE, writes
from gatec.match.terms import storage
from gatec.reroll.loops import LEAST
from gatec.tidy import dead, spread

GraphOf = Callable[[str], fx.Graph | None]


def plain(graph: fx.Graph, module: nn.Module, graph_of: GraphOf) -> None:
    _cells(graph, module, graph_of)
    _parameters(graph)
    _views(graph)
    _in_place(graph)
    dead(graph)


def _cells(graph: fx.Graph, module: nn.Module, graph_of: GraphOf) -> None:
    """Modules of the user's own that are called at every step, such as a cell, become part of the graph."""
    while True:
        times = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
        paths = [p for p, count in times.items() if count >= LEAST and _opens(module.get_submodule(p))]
        graphs = {p: child for p in paths if (child := graph_of(p)) is not None and not any(map(writes, child.nodes))}
        if not graphs:
            return
        for node in [n for n in graph.nodes if n.op == "call_module" and str(n.target) in graphs]:
            spread(graph, node, graphs[str(node.target)])


def _opens(child: nn.Module) -> bool:
    hooks = child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
    return unit_of(child) is None and not hooks


def _parameters(graph: fx.Graph) -> None:
    """Each parameter once, in front of everything that is computed."""
    first = next(n for n in graph.nodes if n.op != "placeholder")
    known: dict[Any, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        if node.target in known:
            node.replace_all_uses_with(known[node.target])
            graph.erase_node(node)
        else:
            known[node.target] = node
            if node is not first:
                first.prepend(node)


def _views(graph: fx.Graph) -> None:
    """y[:, t].copy_(h) is y[:, t] = h."""
    for node in list(graph.nodes):
        view = node.args[0] if node.args else None
        copies = node.op == "call_method" and node.target == "copy_" and not node.users and not node.kwargs
        if copies and isinstance(view, fx.Node) and view.target is operator.getitem and len(node.args) == 2:
            with graph.inserting_before(node):
                new = graph.call_function(operator.setitem, (*view.args, node.args[1]))
            new.meta = {**node.meta, "val": None}
            graph.erase_node(node)


def _in_place(graph: fx.Graph) -> None:
    """h *= a is h * a where nobody reads the old h any more, nor anything that shares its memory."""
    place = {n: i for i, n in enumerate(graph.nodes)}
    sharing: dict[int, list[fx.Node]] = {}
    for node in place:
        if (memory := storage(node)) is not None:
            sharing.setdefault(memory, []).append(node)
    for node in [n for n in place if n.op in ("call_function", "call_method") and writes(n)]:
        target, old = _pure(node), node.args[0] if node.args else None
        memory = storage(old) if isinstance(old, fx.Node) else None
        if target is None or memory is None or not isinstance(old, fx.Node):
            continue
        same, here = old.meta["val"], node.meta.get("val")
        form = (
            isinstance(here, Tensor)
            and isinstance(same, Tensor)
            and (here.shape, here.dtype) == (same.shape, same.dtype)
        )
        own = all(n.op not in ("placeholder", "get_attr") for n in sharing[memory])
        unread = all(place[u] <= place[node] for n in sharing[memory] if place[n] < place[node] for u in n.users)
        if form and own and unread:
            node.target = target


def _pure(node: fx.Node) -> Any:
    """The same operation with a result of its own."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in INPLACE:
        return getattr(operator, name[1:], None)
    plain = name.removesuffix("_")
    if node.op == "call_method" and name.endswith("_") and hasattr(Tensor, plain) and "out" not in node.kwargs:
        return plain
    return None
