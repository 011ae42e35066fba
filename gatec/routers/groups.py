"""Columns in groups: first the best groups are chosen, then columns among theirs."""

from __future__ import annotations

from typing import Any

from torch import fx

from gatec.kernels.router import Groups
from gatec.mixtures.reading import called, given, name_of, number, shape, wants

TURNED = ("invert", "logical_not", "bitwise_not")
WIDENED = ("view", "reshape", "flatten")
LAST = -1


def grouped(key: Any) -> tuple[Groups | None, Any, list[fx.Node]]:
    """(how columns are grouped, what they are chosen by inside the best groups, the nodes that see to it)."""
    if name_of(key) != "masked_fill":
        return None, key, []
    among, mask, fill = key.args
    turned = called(mask, *TURNED)
    whole = turned.args[0]
    nodes = [key, turned]
    while name_of(whole) in ("bool", "to"):
        nodes.append(whole)
        whole = whole.args[0]
    expanded = called(called(whole, *WIDENED).args[0], "expand")
    column = called(expanded.args[0], "unsqueeze")
    wants(number(column.args[1]) in (LAST, 2) and isinstance(number(fill), float))
    chosen, written = _written(column.args[0])
    top = called(called(chosen, "getitem").args[0], "topk")
    wants(chosen.args[1] == 1 and number(given(top, 2, "dim", default=LAST)) in (LAST, 1))
    best, scores, apart = _worth(top.args[0])
    count, width = shape(apart)[-2:]
    wants(apart.args[0] is among and count * width == shape(among)[LAST] and shape(whole) == shape(among))
    nodes += [whole, expanded, column, *written, chosen, top, *scores, apart]
    return Groups(int(count), int(number(given(top, 1, "k"))), best, float(number(fill))), among, nodes


def _written(mask: Any) -> tuple[Any, list[fx.Node]]:
    """Where ones are written among zeros."""
    zeros = mask if name_of(mask) == "zeros_like" else called(mask, "scatter").args[0]
    put = next((u for u in zeros.users if name_of(u) in ("scatter_", "scatter")), None)
    wants(name_of(zeros) == "zeros_like" and put is not None and (put is mask or name_of(put) == "scatter_"))
    dim, index, value = put.args[1:]  # type: ignore[union-attr]
    wants(number(dim) in (1, LAST) and number(value) == 1)
    return index, [zeros, put]


def _worth(scores: Any) -> tuple[int, list[fx.Node], Any]:
    """(how many of a group's columns count, the nodes, the columns by groups)."""
    if name_of(scores) == "sum":
        wants(number(given(scores, 1, "dim")) in (LAST, 2))
        values = called(scores.args[0], "getitem")
        top = called(values.args[0], "topk")
        wants(values.args[1] == 0 and number(given(top, 2, "dim", default=LAST)) in (LAST, 2))
        return (
            int(number(given(top, 1, "k"))),
            [scores, values, top],
            called(top.args[0], "view", "reshape", "unflatten"),
        )
    values = called(scores, "getitem", "getattr", "amax")
    most = values if name_of(values) == "amax" else called(values.args[0], "max")
    wants(values is most or values.args[1] in (0, "values"))
    wants(number(given(most, 1, "dim")) in (LAST, 2))
    return 1, list(dict.fromkeys((scores, most))), called(most.args[0], "view", "reshape", "unflatten")
