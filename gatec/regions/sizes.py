"""Sizes that a graph is written for: asked when it runs, and where they are others the graph does not hold."""

from __future__ import annotations

from typing import Any

from torch import fx

from gatec.capture.guards import hold


def size_of(value: fx.Node, dim: int, before: fx.Node) -> fx.Node:
    """The size of a value, asked for in front of a node."""
    with before.graph.inserting_before(before):
        size = before.graph.call_method("size", (value, dim))
    size.meta = {**before.meta, "val": value.meta["val"].shape[dim]}
    return size


def require(found: fx.Node, wanted: Any, words: str, before: fx.Node) -> None:
    """From a node on, the graph holds only where a value is as it was."""
    with before.graph.inserting_before(before):
        told = before.graph.call_function(hold, (found, wanted, words))
    told.meta = {**before.meta, "val": None}
