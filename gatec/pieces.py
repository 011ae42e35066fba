"""A part of a region as a function of the operands it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from gatec.derive import Derived, derive
from gatec.making import Run, pull_of
from gatec.regions import function


@dataclass(frozen=True, eq=False)
class Piece:
    """Which operands it takes, by name, and what it computes."""

    names: tuple[str, ...]
    run: Run


def piece(nodes: Sequence[fx.Node], end: fx.Node, called: Mapping[fx.Node, str]) -> tuple[Piece, Derived]:
    """What computes `end` of the values that have names, and the same for a kernel."""
    needed, queue = {end}, [end]
    for node in queue:
        fresh = [a for a in node.all_input_nodes if a not in needed] if node not in called else []
        needed.update(fresh)
        queue += fresh
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    inputs = [n for n in called if n in needed]
    for node in inputs:
        env[node] = graph.placeholder(called[node])
    for node in nodes:
        if node in needed and node not in called:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(env[end])
    run = function(graph)
    derived = derive(run, [n.meta["val"] for n in inputs])
    pull_of(run, derived)  # refuses a backward of its own that no kernel can follow
    return Piece(tuple(called[n] for n in inputs), run), derived


def floats(names: Sequence[str], known: Mapping[str, Tensor]) -> list[str]:
    """The operands that have gradients."""
    return [n for n in names if known[n].is_floating_point()]


def gather(
    found: dict[str, Tensor], names: Sequence[str], grads: Sequence[Tensor], known: Mapping[str, Tensor]
) -> None:
    """Add a piece's gradients, one for each floating operand, to those found so far."""
    for name, grad in zip(floats(names, known), grads, strict=True):
        found[name] = found[name] + grad if name in found else grad
