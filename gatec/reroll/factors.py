"""Values that do not depend on a matrix of state, as keys and rows of it; an outer product as its two factors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from gatec.errors import Refused
from gatec.reroll.affine import KEPT, QUOTIENTS, Values
from gatec.reroll.affine import PRODUCTS as TIMES
from gatec.reroll.batch import PRODUCTS, name_of
from gatec.reroll.loops import Carry, Each, Local, Same

Pair = tuple[Any, Any]


class Factors:
    """`keys` is -1 or -2: the dimension of the state that its reads sum over; the other is that of the values."""

    def __init__(self, roll: Values, state: Tensor, keys: int) -> None:
        self.roll, self.maker, self.state = roll, roll.maker, state
        self.keys, self.values = keys, -3 - keys
        self.made: dict[Any, Any] = {}

    def times(self, x: Any, y: Any) -> Any:
        """The same node for the same factors: so decays can be compared."""
        at = x, y
        if at not in self.made:
            self.made[at] = self.maker.times(x, y)
        return self.made[at]

    def summed(self, key: Any) -> Any:
        """Over all keys, with their dimension kept."""
        if self.shape(key)[self.keys :][:1] != (self.state.shape[self.keys],):
            raise Refused("a weight that all keys share")
        return self.maker.make("sum", key, dim=self.keys, keepdim=True, rolled=key in self.maker.rolled)

    # -- kinds ---------------------------------------------------------------------------------------------------------

    def shape(self, value: Any) -> tuple[int, ...]:
        """Of one step."""
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
            return ()
        return tuple(value.meta["val"].shape[value in self.maker.rolled :])

    def kind_of(self, value: Any) -> str:
        return self._kind(self.shape(value))

    def kind_of_kind(self, kind: Any) -> str:
        return self._kind(self._step_shape(kind))

    def _kind(self, shape: tuple[int, ...]) -> str:
        """number, key, row or full."""
        sizes = (*(1,) * (2 - len(shape)), *shape)
        if len(sizes) > self.state.ndim:
            raise Refused("a value of more dimensions than the state")
        many = sizes[self.keys] != 1, sizes[self.values] != 1
        return {(False, False): "number", (True, False): "key", (False, True): "row", (True, True): "full"}[many]

    def _step_shape(self, kind: Any) -> tuple[int, ...]:
        found: Any = None
        if isinstance(kind, (Local, Carry)):
            found = self.roll.loop.node(kind.offset)
        else:
            found = kind.nodes[0] if isinstance(kind, Each) else kind.value if isinstance(kind, Same) else None
        value = found.meta.get("val") if isinstance(found, fx.Node) else None
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    # -- operands ------------------------------------------------------------------------------------------------------

    def key(self, kind: Any) -> Any:
        if self.kind_of_kind(kind) not in ("key", "number"):
            raise Refused("a factor of the state that is not the same along its values")
        return self.roll.operand(kind)

    def row(self, kind: Any, form: str) -> Any:
        """A value that meets a row which has this form."""
        value = self.roll.operand(kind)
        shape = self.shape(value)
        if not shape:
            return value
        if form == "vector":
            if len(shape) >= self.state.ndim:
                raise Refused("a row of state meets a value of more dimensions")
            value = self._raised(value, self.state.ndim - 1)
            return self._made("unsqueeze", value, self.keys)
        if form == "flipped":
            return self._made("transpose", self._raised(value, 2), -1, -2)
        if self.kind_of(value) not in ("row", "number"):
            raise Refused("a row of state meets a value that is none")
        return value

    def side(self, kind: Any, over: int) -> Any:
        """The other factor of a matrix product that sums over this dimension of the state, as a key."""
        value, one = self.roll.operand(kind), self.state.shape[self.keys]
        shape = self.shape(value)
        if len(shape) == 1 and self.state.ndim == 2:
            return self._made("unsqueeze", value, self.values)
        row = over == -2
        if len(shape) < 2 or shape[-2:] != ((1, one) if row else (one, 1)):
            raise Refused("a matrix product with more than one key at a step")
        return value if row == (self.keys == -1) else self._made("transpose", value, -1, -2)

    def lettered(self, kind: Any, letters: str, state: str) -> Any:
        """An einsum's operand over all dimensions of the state but that of the values."""
        if letters != self.without(state, self.values):
            raise Refused("an einsum whose key has other dimensions than the state")
        return self._made("unsqueeze", self.roll.operand(kind), self.values)

    def without(self, letters: str, dim: int) -> str:
        at = dim % len(letters)
        return letters[:at] + letters[at + 1 :]

    def _raised(self, value: Any, rank: int) -> Any:
        if value in self.maker.rolled:
            return self.maker.raised(value, rank)
        for _ in range(rank - len(self.shape(value))):
            value = self._made("unsqueeze", value, 0)
        return value

    def _made(self, target: Any, value: Any, *args: Any) -> Any:
        return self.maker.make(target, value, *args, rolled=value in self.maker.rolled)

    # -- forms of a row ------------------------------------------------------------------------------------------------

    def form_of(self, shape: tuple[int, ...]) -> str | None:
        """vector: without the dimension of the keys; row: with it; flipped: with it where the values' should be."""
        lead, wide = tuple(self.state.shape[:-2]), self.state.shape[self.values]
        row = [wide, wide]
        row[self.keys] = 1
        forms = {(*lead, wide): "vector", (*lead, *row): "row", (*lead, *row[::-1]): "flipped"}
        return forms.get(tuple(shape))

    def form(self, kind: Any) -> str:
        found = self.form_of(self._step_shape(kind))
        if found is None:
            raise Refused("a row of state in a form that is not known")
        return found

    # -- outer products ------------------------------------------------------------------------------------------------

    def outer(self, kind: Any) -> Pair:
        """A value with all of the state's dimensions, as a key and a row."""
        if not isinstance(kind, Local):
            raise Refused("what is added to the state is no outer product of a step")
        node, (args, kwargs) = self.roll.loop.node(kind.offset), self.roll.loop.arguments[kind.offset]
        name = name_of(node)
        if name in KEPT:
            return self.outer(args[0])
        if name in TIMES:
            return self._product(*args[:2])
        if name in QUOTIENTS and not kwargs:
            key, row = self.outer(args[0])
            return self.maker.over(key, self.key(args[1])), row
        if name in ("neg", "negative"):
            key, row = self.outer(args[0])
            return self.times(key, -1.0), row
        if name in (*PRODUCTS, "outer"):
            return self._matmul(name, *args[:2])
        if name == "einsum":
            return self._einsum(args)
        raise Refused("what is added to the state is no outer product")

    def _product(self, x: Any, y: Any) -> Pair:
        kinds = self.kind_of_kind(x), self.kind_of_kind(y)
        if kinds[0] == "full" or kinds == ("row", "key") or kinds == ("number", "key"):
            x, y, kinds = y, x, kinds[::-1]
        if kinds[1] == "full":
            key, row = self.outer(y)
            by = self.roll.operand(x)
            return (key, self.times(row, by)) if kinds[0] == "row" else (self.times(key, by), row)
        if kinds != ("key", "row"):
            raise Refused("what is added to the state is no outer product")
        return self.roll.operand(x), self.roll.operand(y)

    def _matmul(self, name: str, x: Any, y: Any) -> Pair:
        left, right = self.roll.operand(x), self.roll.operand(y)
        if name == "outer":
            left, right = self._made("unsqueeze", left, -1), self._made("unsqueeze", right, -2)
        pair = (left, right) if self.keys == -2 else (right, left)
        if (self.kind_of(pair[0]), self.kind_of(pair[1])) != ("key", "row"):
            raise Refused("what is added to the state is a product of matrices")
        return pair

    def _einsum(self, args: Any) -> Pair:
        text, *given = args
        given = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        letters = getattr(text, "value", text).replace(" ", "").replace("->", ",").split(",")
        if len(given) != 2 or len(letters) != 3:
            raise Refused("what is added to the state is no outer product")
        out = letters[2]
        first = 0 if letters[0] == self.without(out, self.values) else 1
        if letters[1 - first] != self.without(out, self.keys):
            raise Refused("what is added to the state is no outer product")
        row = self._made("unsqueeze", self.roll.operand(given[1 - first]), self.keys)
        return self.lettered(given[first], letters[first], out), row


def logarithm(maker: Any, value: Any) -> Any:
    """Of a decay that was written as an exponential, perhaps with dimensions of size 1 behind; None of any other."""
    if not isinstance(value, fx.Node) or value not in maker.rolled:
        return None
    name = name_of(value)
    if name == "exp":
        return value.args[0]
    if (name == "unsqueeze" and len(value.args) == 2) or (
        name == "getitem" and isinstance(value.args[1], tuple) and None in value.args[1]
    ):
        inner = logarithm(maker, value.args[0])
        target = operator.getitem if name == "getitem" else torch.unsqueeze
        return None if inner is None else maker.make(target, inner, value.args[1])
    return None
