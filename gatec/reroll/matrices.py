"""Values of a loop whose state is a matrix: what a step makes of it, as keys, rows of values, and their outer products.

One dimension of the state is that of its keys, which reads sum over; the other is that of its values. A key has size 1
along the values, a row has size 1 along the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from gatec.errors import Refused
from gatec.reroll.affine import KEPT, PRODUCTS, QUOTIENTS, SUMS, Values
from gatec.reroll.batch import PRODUCTS as MATRIX_PRODUCTS
from gatec.reroll.batch import name_of
from gatec.reroll.factors import Factors
from gatec.reroll.loops import Local


@dataclass(frozen=True)
class Row:
    """scale * (read' decay S) + new; without `read` only what is new."""

    read: Any = None
    decay: Any = None
    scale: Any = 1.0
    new: Any = None


@dataclass(frozen=True)
class Matrix:
    """decay * S, nothing of it where `decay` is None, and outer products of keys and rows."""

    decay: Any = None
    terms: tuple[tuple[Any, Row], ...] = ()


@dataclass(frozen=True)
class Weighted:
    """A matrix times a key: it decays, or is about to be summed over the keys."""

    matrix: Matrix
    by: Any


@dataclass(frozen=True)
class Flipped:
    matrix: Matrix


Value = Row | Matrix | Weighted | Flipped
VIEWS = {"unsqueeze", "squeeze", "getitem", "view", "reshape"}
FLIPS = {"transpose", "t", "swapaxes", "getattr"}


class Matrices:
    """What depends on `base`, the state, among the nodes of one step; `keys` is the dimension that reads sum over."""

    def __init__(self, roll: Values, state: Tensor, keys: int, base: Any) -> None:
        self.roll, self.maker, self.state, self.base = roll, roll.maker, state, base
        self.factors = Factors(roll, state, keys)
        self.known: dict[int, Value] = {}

    def of(self, offset: int) -> Value:
        """The value of a node; all it depends on has been asked for before."""
        if offset not in self.known:
            node, (args, kwargs) = self.roll.loop.node(offset), self.roll.loop.arguments[offset]
            rule, value = self._rule(node), node.meta.get("val")
            if rule is None or not isinstance(value, Tensor):
                raise Refused(f"{name_of(node)} of a matrix of state ({self.roll.where(offset)})")
            if value.dtype != self.state.dtype:
                raise Refused(f"the carried value is rounded at every step ({self.roll.where(offset)})")
            try:
                self.known[offset] = rule(self, node, args, kwargs)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
                raise Refused(f"{name_of(node)} with arguments in another form ({self.roll.where(offset)})") from e
        return self.known[offset]

    def depends(self, kind: Any) -> bool:
        return kind == self.base or (isinstance(kind, Local) and kind.offset in self.known)

    def value(self, kind: Any) -> Value:
        return Matrix(1.0) if kind == self.base else self.known[kind.offset]

    def matrix(self, value: Value) -> Matrix:
        if isinstance(value, Weighted):
            return self.decayed(value.matrix, value.by)
        if not isinstance(value, Matrix):
            raise Refused("a matrix of state and a row of it together")
        return value

    def decayed(self, m: Matrix, by: Any) -> Matrix:
        """Where all keys share it, what was read decays with it as well."""
        times, shared = self.factors.times, m.decay is not None and self.factors.kind_of(by) == "number"
        terms = []
        for key, row in m.terms:
            if row.read is None or not shared:
                terms.append((times(key, by), row))
            else:
                new = None if row.new is None else times(row.new, by)
                terms.append((key, Row(row.read, times(row.decay, by), row.scale, new)))
        return Matrix(None if m.decay is None else times(m.decay, by), tuple(terms))

    def _rule(self, node: fx.Node) -> Callable[..., Value] | None:
        name = name_of(node)
        if name in SUMS:
            return lambda me, node, args, kwargs: me.sum(args, kwargs, SUMS[name])
        if name in FLIPS and not (name == "getattr" and node.args[1] != "mT"):
            return _flipped
        return RULES.get(name)

    def sum(self, args: Any, kwargs: Any, sign: int) -> Value:
        if kwargs:
            raise Refused("a scaled sum")
        x, y = args[:2]
        if any(self.depends(k) and isinstance(self.value(k), Row) for k in (x, y)):
            return self.rows(x, y, sign)
        a, b = (self.matrix(self.value(k)) if self.depends(k) else self.outer(k) for k in (x, y))
        b = b if sign > 0 else self.decayed(b, -1.0)
        return Matrix(self.maker.plus(a.decay, b.decay), (*a.terms, *b.terms))

    def outer(self, kind: Any) -> Matrix:
        key, row = self.factors.outer(kind)
        return Matrix(None, ((key, Row(new=row)),))

    def rows(self, x: Any, y: Any, sign: int) -> Row:
        form = self.factors.form(next(k for k in (x, y) if self.depends(k)))
        a, b = (self.value(k) if self.depends(k) else Row(new=self.factors.row(k, form)) for k in (x, y))
        if not isinstance(a, Row) or not isinstance(b, Row):
            raise Refused("a matrix of state and a row of it together")
        b = self.times(b, -1.0) if sign < 0 else b
        if a.read is not None and b.read is not None:
            raise Refused("a sum of two reads of the state")
        first = a if a.read is not None else b
        return Row(first.read, first.decay, first.scale, self.maker.plus(a.new, b.new))

    def times(self, row: Row, by: Any) -> Row:
        times = self.factors.times
        return Row(row.read, row.decay, times(row.scale, by), None if row.new is None else times(row.new, by))

    def read(self, matrix: Matrix, key: Any) -> Row:
        """Summed over the keys with their weights; what was added in this step answers as well."""
        if any(row.read is not None for _, row in matrix.terms):
            raise Refused("it reads what it has erased in the same step")
        new = None
        for own, row in matrix.terms:
            met = self.factors.summed(self.factors.times(key, own))
            new = self.maker.plus(new, self.factors.times(row.new, met))
        return Row(new=new) if matrix.decay is None else Row(key, matrix.decay, 1.0, new)


# -- rules ------------------------------------------------------------------------------------------------------------


def _kept(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    return me.value(args[0])


def _viewed(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    value = me.value(args[0])
    if not isinstance(value, Row) or me.factors.form_of(node.meta["val"].shape) is None:
        raise Refused(f"{name_of(node)} of a matrix of state ({node.meta.get('where')})")
    return value


def _product(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    x, y = args[:2]
    if me.depends(x) and me.depends(y):
        raise Refused("a product of the carried value with what is computed from it")
    x, y = (x, y) if me.depends(x) else (y, x)
    value = me.value(x)
    if not isinstance(value, Row):
        return Weighted(me.matrix(value), me.factors.key(y))
    if node.meta["val"].shape == me.state.shape and me.factors.kind_of_kind(y) == "key":
        return Matrix(None, ((me.factors.key(y), value),))
    return me.times(value, me.factors.row(y, me.factors.form(x)))


def _quotient(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    x, y = args[:2]
    if me.depends(y) or kwargs:
        raise Refused("a division by the carried value")
    value = me.value(x)
    if isinstance(value, Row):
        return me.times(value, me.maker.over(1.0, me.factors.row(y, me.factors.form(x))))
    return Weighted(me.matrix(value), me.maker.over(1.0, me.factors.key(y)))


def _negative(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    value = me.value(args[0])
    return me.times(value, -1.0) if isinstance(value, Row) else me.decayed(me.matrix(value), -1.0)


def _summed(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    value, dim = me.value(args[0]), kwargs.get("dim", args[1] if len(args) > 1 else None)
    dim = getattr(dim, "value", dim)
    given: Any = dim if isinstance(dim, (tuple, list)) else () if dim is None else (dim,)
    dims = [getattr(d, "value", d) % me.state.ndim for d in given]
    if isinstance(value, Row) or dims != [me.factors.keys % me.state.ndim]:
        raise Refused("a sum over other dimensions than that of the keys")
    weighted = value if isinstance(value, Weighted) else Weighted(me.matrix(value), 1.0)
    return me.read(weighted.matrix, weighted.by)


def _flipped(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    value, dims = me.value(args[0]), [getattr(a, "value", a) for a in args[1:]]
    rank = me.state.ndim
    if name_of(node) not in ("t", "getattr") and {d % rank for d in dims} != {rank - 1, rank - 2}:
        raise Refused("other dimensions of the state change places")
    if isinstance(value, Row):
        return value
    return value.matrix if isinstance(value, Flipped) else Flipped(me.matrix(value))


def _matmul(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    x, y = args[:2]
    if me.depends(x) and me.depends(y):
        raise Refused("a product of the carried value with what is computed from it")
    dependent, other = (x, y) if me.depends(x) else (y, x)
    value = me.value(dependent)
    if isinstance(value, Row):
        if node.meta["val"].shape != me.state.shape or me.factors.kind_of_kind(other) != "key":
            raise Refused("a product of a row of state that is no outer product")
        return Matrix(None, ((me.factors.key(other), value),))
    flipped = isinstance(value, Flipped)
    over = -1 if dependent is x else -2  # the dimension of the matrix that is summed over
    if (over == me.factors.keys) == flipped:
        raise Refused("a product over other dimensions than that of the keys")
    matrix = value.matrix if isinstance(value, Flipped) else me.matrix(value)
    return me.read(matrix, me.factors.side(other, over))


def _einsum(me: Matrices, node: fx.Node, args: Any, kwargs: Any) -> Value:
    text, *given = args
    text = getattr(text, "value", text)
    given = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    letters = text.replace(" ", "").replace("->", ",").split(",")
    if len(given) != 2 or len(letters) != 3 or all(map(me.depends, given)):
        raise Refused("an einsum that is neither a read of the state nor an outer product")
    at = 0 if me.depends(given[0]) else 1
    value, mine, others, out = me.value(given[at]), letters[at], letters[1 - at], letters[2]
    key = me.factors.lettered(given[1 - at], others, out if isinstance(value, Row) else mine)
    if isinstance(value, Row):
        if mine != me.factors.without(out, me.factors.keys) or node.meta["val"].shape != me.state.shape:
            raise Refused("an einsum of a row of state that is no outer product")
        return Matrix(None, ((key, value),))
    if out != me.factors.without(mine, me.factors.keys):
        raise Refused("an einsum over other dimensions than that of the keys")
    return me.read(me.matrix(value), key)


RULES: dict[str, Callable[..., Value]] = {
    **dict.fromkeys(KEPT, _kept), **dict.fromkeys(VIEWS, _viewed), **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(QUOTIENTS, _quotient), "neg": _negative, "negative": _negative, "sum": _summed,
    **dict.fromkeys(MATRIX_PRODUCTS, _matmul), "einsum": _einsum,
}  # fmt: skip
