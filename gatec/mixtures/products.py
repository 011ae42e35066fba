"""Products of pairs with their expert's matrix, in the forms that models write, and the bias behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from gatec.mixtures.pairs import Pairs, ends_of
from gatec.mixtures.reading import Unlike, called, given, name_of, number, shape, sliced, through, turned, wants

ADDS, IN_PLACE = ("add", "iadd", "add_"), ("iadd", "add_")


@dataclass(frozen=True)
class Product:
    """rows @ weight[expert].T + bias[expert]; `turned` if the matrices lie transposed. `total` holds the result."""

    total: Any
    rows: Any
    weight: Any
    turned: bool
    bias: Any = None

    @property
    def width(self) -> int:
        return shape(self.total)[-1]


def product(total: Any, pairs: Pairs) -> Product:
    """What a node is the result of, with the bias that is added to it, here or in place behind it."""
    total = through(total)
    try:
        return _in_place(_multiplied(total, pairs), pairs)
    except Unlike:
        called(total, *ADDS)
    for mine, bias in ((0, 1), (1, 0)):
        try:
            found = _multiplied(through(total.args[mine]), pairs)
            return Product(total, found.rows, found.weight, found.turned, _bias(total.args[bias], pairs))
        except Unlike:
            continue
    raise Unlike("a sum of something else")


def _bias(rows: Any, pairs: Pairs) -> Any:
    """The biases of all experts, of which these are the pairs' own."""
    bias, index = called(rows, "getitem").args
    wants(pairs.expert(index) and len(shape(bias)) == 2)
    return bias


def _in_place(found: Product, pairs: Pairs) -> Product:
    added = [u for u in found.total.users if name_of(u) in IN_PLACE and u.args[0] is found.total]
    if not added:
        return found
    wants(len(added) == 1 and not added[0].users and next(iter(found.total.users)) is added[0])
    return Product(found.total, found.rows, found.weight, found.turned, _bias(added[0].args[1], pairs))


def _multiplied(node: Any, pairs: Pairs) -> Product:
    wants(len(shape(node)) == 2)
    if name_of(node) == "grouped_linear":
        rows, weight, ends = node.args
        return _grouped(node, rows, weight, False, ends, pairs)
    if name_of(node) == "grouped_mm":
        weight, lies = turned(node.args[1])
        wants(given(node, 3, "bias") is None and given(node, 4, "out_dtype") is None)
        return _grouped(node, node.args[0], weight, not lies, given(node, 2, "offs"), pairs)
    return _batched(node, pairs)


def _grouped(node: fx.Node, rows: Any, weight: Any, lies: bool, ends: Any, pairs: Pairs) -> Product:
    wants(pairs.order is not None and ends_of(ends, pairs) == shape(weight)[0] and len(shape(weight)) == 3)
    return Product(node, through(rows), weight, lies)


def _batched(node: fx.Node, pairs: Pairs) -> Product:
    """A matrix for each pair, looked up."""
    called(node, "squeeze")
    at = number(given(node, 1, "dim"))
    left, right = called(node.args[0], "bmm", "matmul").args
    if name_of(left) == "getitem":
        wants(at in (2, -1))
        matrix, rows, lies = left, called(right, "unsqueeze"), False
        wants(number(rows.args[1]) in (2, -1))
    else:
        wants(at in (1, -2))
        matrix, rows, lies = called(right, "getitem"), called(left, "unsqueeze"), True
        wants(number(rows.args[1]) in (1, -2))
    weight, index = matrix.args
    wants(pairs.expert(index) and len(shape(weight)) == 3)
    return Product(node, through(rows.args[0]), weight, lies)


@dataclass(frozen=True)
class Half:
    """Some columns of a product's result; all of them where `rows` is None."""

    node: Any
    product: Product
    rows: tuple[int, int, int] | None = None


def half(node: Any, pairs: Pairs) -> Half:
    """A node as the result of a product, or as a slice of one."""
    try:
        whole, rows = sliced(node)
    except Unlike:
        return Half(node, product(node, pairs))
    return Half(node, product(whole, pairs), rows)
