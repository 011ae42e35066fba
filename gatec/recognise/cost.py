"""What a gate costs: parameters and operations of its signal, memory traffic of its own pointwise nodes in eager mode."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, fx

from gatec.match import Canon, Term
from gatec.match.terms import storage
from gatec.recognise.look import VIEWS, below, layered

STOP = {"value", "param", "const", "size", "buffer"}


def parameters(gates: tuple[Term, ...]) -> int:
    """Elements of the parameters that the signal is computed from directly: those of its last layers."""
    found = {term.data if layered(term) else term: weights(term) for term in below(gates)}
    return sum(found.values())


def inner(canon: Canon, term: Term) -> int:
    """The parameters of a cell that is a module without a graph."""
    if not term.op.startswith("module:"):
        return 0
    return sum(p.numel() for p in canon.module_of(term.data[0]).parameters())


def steps(canon: Canon, term: Term) -> int:
    """The operations of a cell that is a module without a graph: all its weights at every step."""
    x = term.args[0] if term.args else term
    return 2 * inner(canon, term) * (elements(x) // int((x.shape or (1,))[-1]))


def weights(term: Term) -> int:
    if term.op == "param":
        return elements(term)
    return int(term.data.elements) if hasattr(term.data, "elements") else 0


def elements(term: Term) -> int:
    return math.prod([s for s in term.shape or (1,) if isinstance(s, int)])


def flops(gates: tuple[Term, ...], own: list[fx.Node]) -> int:
    """Two for each weight that meets each position, one for each element that a pointwise node makes."""
    layers = sum(2 * weights(t) * positions(t) for t in set(below(gates)) if layered(t))
    return int(layers + sum(n.meta["val"].numel() for n in own))


def positions(layer: Term) -> int:
    """How often a layer's weights are used: the elements of its result over its width."""
    width = getattr(layer.data, "out", 0)
    return elements(layer) // width if width else 0


def traffic(own: list[fx.Node]) -> int:
    """Bytes that the nodes read and write when each is a kernel of its own."""
    tensors = [v for n in own for v in (n.meta["val"], *(a.meta.get("val") for a in n.all_input_nodes))]
    return sum(v.numel() * v.element_size() for v in tensors if isinstance(v, Tensor))


def pointwise(canon: Canon, path: str, root: fx.Node, values: tuple[Term, ...], most: int = 64) -> list[fx.Node]:
    """The nodes between a gate's layers and its result, without views and without what is gated."""
    queue = [root]
    for node in queue:
        reads = list(_reads(canon, path, node, values)) if len(queue) < most else []
        queue += [a for a in dict.fromkeys(reads) if a not in queue]
    return [n for n in queue if isinstance(n.meta.get("val"), Tensor) and not _view(canon, path, n)]


def _reads(canon: Canon, path: str, node: fx.Node, values: tuple[Term, ...]) -> Iterator[fx.Node]:
    for source in node.all_input_nodes:
        term = canon.terms.get((path, source))
        outside = term is None or term.op in STOP or layered(term) or any(term is v for v in values)
        if not outside and source.op not in ("placeholder", "get_attr"):
            yield source


def _view(canon: Canon, path: str, node: fx.Node) -> bool:
    memory = storage(node)
    shares = memory is not None and any(storage(a) == memory for a in node.all_input_nodes)
    return shares or canon.terms[path, node].op in VIEWS
