"""A part of a region as a function of the operands it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from gatec.derive import Derived, derive
from gatec.making import Run, pull_of
from gatec.regions import function, graph_of


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
    inputs = {n: name for n, name in called.items() if n in needed}
    run = function(graph_of(inputs, [n for n in nodes if n in needed and n not in called], end))
    derived = derive(run, [n.meta["val"] for n in inputs])
    pull_of(run, derived)  # refuses a backward of its own that no kernel can follow
    return Piece(tuple(inputs.values()), run), derived


def floats(names: Sequence[str], known: Mapping[str, Tensor]) -> list[str]:
    """The operands that have gradients."""
    return [n for n in names if known[n].is_floating_point()]


def gather(
    found: dict[str, Tensor], names: Sequence[str], grads: Sequence[Tensor], known: Mapping[str, Tensor]
) -> None:
    """Add a piece's gradients, one for each floating operand, to those found so far."""
    for name, grad in zip(floats(names, known), grads, strict=True):
        found[name] = found[name] + grad if name in found else grad
