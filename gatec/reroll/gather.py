"""Who reads single steps after the loop: lists that are stacked again become the rolled value, others take their step."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from gatec.reroll.maker import Maker
from gatec.reroll.roll import Home

JOINS: dict[Any, str] = {torch.stack: "stack", torch.cat: "cat", torch.concat: "cat", torch.concatenate: "cat"}


def gather(maker: Maker, home: Home, inside: set[fx.Node]) -> None:
    """Give every reader outside of the loops another source; `inside` are the nodes of the loops."""
    outside = {u for n in home for u in n.users if u not in inside}
    for node in [n for n in maker.graph.nodes if n in outside]:
        maker.anchor, maker.where = node, str(node.meta.get("where"))
        if node.target in JOINS:
            _join(maker, home, node)
        taken: dict[fx.Node, fx.Node] = {}
        for source in node.all_input_nodes:
            if source in home and source not in taken:
                whole, at = home[source]
                taken[source] = maker.make(operator.getitem, whole, at, rolled=False)
        if taken:
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: taken.get(n, n))  # noqa: B023


def _join(maker: Maker, home: Home, node: fx.Node) -> None:
    """stack or cat of many steps: of a few pieces, or of one, which is then the result."""
    items, dim, rest = _arguments(node)
    if rest or not isinstance(items, (list, tuple)) or not all(isinstance(i, fx.Node) for i in items):
        return
    rank = next(i.meta["val"].ndim for i in items)
    stacks = JOINS[node.target] == "stack"
    dim = dim % (rank + stacks)
    pieces = [_piece(maker, home, run, dim, stacks) for run in _runs(items, home)]
    if len(pieces) == len(items):
        return
    new = pieces[0] if len(pieces) == 1 else maker.make(torch.cat, pieces, dim, rolled=False)
    new = maker.make("contiguous", new, rolled=False)
    node.replace_all_uses_with(new, delete_user_cb=lambda u: u is not new)
    node.args, node.kwargs = ((), dim), {}


def _arguments(node: fx.Node) -> tuple[Any, Any, dict[str, Any]]:
    rest = dict(node.kwargs)
    items = node.args[0] if node.args else rest.pop("tensors", None)
    dim = node.args[1] if len(node.args) > 1 else rest.pop("dim", rest.pop("axis", 0))
    return items, dim, rest


Run = tuple[fx.Node, int, int, int] | fx.Node  # a rolled value, its first and last place, which way


def _runs(items: Iterable[fx.Node], home: Home) -> list[Run]:
    """The longest stretches of consecutive steps of one rolled value."""
    runs: list[Run] = []
    for item in items:
        if item not in home:
            runs.append(item)
            continue
        whole, at = home[item]
        at %= whole.meta["val"].shape[0]
        last = runs[-1] if runs else None
        if (
            isinstance(last, tuple)
            and last[0] is whole
            and at - last[2] == (last[3] or at - last[2])
            and abs(at - last[2]) == 1
        ):
            runs[-1] = whole, last[1], at, at - last[2]
        else:
            runs.append((whole, at, at, 0))
    return runs


def _piece(maker: Maker, home: Home, run: Run, dim: int, stacks: bool) -> fx.Node:
    """One stretch as a tensor with its steps along `dim`."""
    if isinstance(run, fx.Node):
        return maker.make("unsqueeze", run, dim, rolled=False) if stacks else run
    whole, first, last, way = run
    low, high = min(first, last), max(first, last) + 1
    if high - low < whole.meta["val"].shape[0]:
        whole = maker.make(operator.getitem, whole, slice(low, high))
    whole = maker.make("flip", whole, 0) if way < 0 else whole
    out = maker.make("movedim", whole, 0, dim, rolled=False) if dim else whole
    return out if stacks else maker.make("flatten", out, dim, dim + 1, rolled=False)
