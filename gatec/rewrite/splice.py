"""One splice: what `after` builds from the values at a place, put in the place of one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from gatec.capture.guards import hold, writes
from gatec.errors import Refused
from gatec.gate import Gate
from gatec.match import Canon, Term
from gatec.rewrite.readers import unwritten
from gatec.site import Site


def bound(gate: Gate, function: Callable[..., Any], site: Site, options: dict[str, Any],
          values: dict[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """What `function` asks for by name: layers, activations, tensor holes, the replaced value, options."""
    everything = {**options, **site.layers, **site.match.acts, **(values or {})}
    return gate.accepted(function, everything)


def carried(site: Site, canon: Canon, graph: fx.Graph) -> tuple[fx.Node, dict[str, fx.Node]]:
    """The nodes of `graph` that hold the replaced value and what fills the tensor holes."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    cut = _carrier(canon, site.match.cut, order)
    return cut, {k: _carrier(canon, t, order, _leading(cut)) for k, t in site.match.values.items()}


def splice(site: Site, cut: fx.Node, values: dict[str, fx.Node], gate: Gate, options: dict[str, Any]) -> None:
    assert site.tracer is not None
    graph = site.tracer.graph
    order = {n: i for i, n in enumerate(graph.nodes)}
    last = max([cut, *values.values()], key=lambda n: order[n])
    while last.op == "placeholder" and last.next.op == "placeholder":
        last = last.next
    for name, value in values.items():
        unwritten(name, value, last, order)
    if writes(cut) and any(order[u] > order[cut] for n in cut.all_input_nodes[:1] for u in n.users):
        raise Refused(f"its hidden layer is written in place ({cut.name}) and read under another name")
    before = set(graph.nodes)
    with graph.inserting_after(last):
        anchor = graph.call_function(hold, (0, 0, ""))  # a fixed point to write in front of
    with graph.inserting_before(anchor):
        proxies = {k: site.proxy(n) for k, n in values.items()}
        given = bound(gate, gate.after, site, options, {**proxies, "here": site.proxy(cut)})
        result = gate.after(site, **given).node
    graph.erase_node(anchor)
    new = [n for n in graph.nodes if n not in before]
    for node in new:
        node.meta.setdefault("gate", gate.name)
    users = [u for u in cut.users if u not in new]
    if any(order[u] <= order[last] for u in users):
        raise Refused(f"{last.name} is computed after the value that it would replace was read")
    for user in users:
        user.replace_input_with(cut, result)
    if "val" in cut.meta:
        result.meta.setdefault("val", cut.meta["val"])


def _carrier(canon: Canon, term: Term, order: dict[fx.Node, int], leading: tuple[int, ...] | None = None) -> fx.Node:
    nodes = [n for p, n in canon.carriers[term] if p == "" and n in order]
    if not nodes:
        raise Refused("a value of it stays inside a child module")
    nodes.sort(key=lambda n: order[n])
    return next((n for n in nodes if leading is not None and _leading(n) == leading), nodes[0])


def _leading(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape[:-1]) if isinstance(value, Tensor) else None
