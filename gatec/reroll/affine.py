"""Proof that the next state is a * state + b, element by element, with the a and the b of every step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, fx, nn

from gatec.errors import Refused
from gatec.reroll.batch import name_of
from gatec.reroll.loops import Carry, Local, Loop, leaves
from gatec.reroll.maker import Maker

Pair = tuple[Any, Any]  # a and b; None is zero
SUMS = {"add": 1, "iadd": 1, "sub": -1, "isub": -1, "subtract": -1}
PRODUCTS = {"mul", "imul", "multiply"}
QUOTIENTS = {"truediv", "itruediv", "div", "divide", "true_divide"}
KEPT = {
    "clone",
    "contiguous",
    "positive",
    "pos",
    "to",
    "type",
    "float",
    "double",
    "half",
    "bfloat16",
    "type_as",
    "cpu",
    "cuda",
}


class Values(Protocol):
    """A loop's values by offset."""

    loop: Loop
    maker: Maker

    def operand(self, kind: Any) -> Any: ...

    def where(self, offset: int) -> str: ...


class Affine:
    """The nodes of one cycle as pairs (a, b) of values that do not depend on the state."""

    def __init__(self, roll: Values, cycle: frozenset[int], carried: int, state: Tensor) -> None:
        self.roll, self.maker, self.cycle, self.carried, self.state = roll, roll.maker, cycle, carried, state
        found = [
            k for j in cycle for k in leaves(roll.loop.arguments[j]) if isinstance(k, Carry) and k.offset == carried
        ]
        self.carry = found[0]
        if any(k != self.carry for k in found):
            raise Refused(f"its first step starts from several values ({roll.where(carried)})")
        self.known: dict[int, Pair] = {}

    def of(self, offset: int) -> Pair:
        if offset not in self.known:
            node, (args, kwargs) = self.roll.loop.node(offset), self.roll.loop.arguments[offset]
            self.known[offset] = self._node(offset, node, args, kwargs)
        return self.known[offset]

    def _depends(self, kind: Any) -> bool:
        return kind == self.carry or (isinstance(kind, Local) and kind.offset in self.cycle)

    def _pair(self, kind: Any) -> Pair:
        if kind == self.carry:
            return 1.0, None
        if self._depends(kind):
            return self.of(kind.offset)
        value = self.roll.operand(kind)
        return None, None if not isinstance(value, (fx.Node, bool)) and value == 0 else value

    def _node(self, offset: int, node: fx.Node, args: Any, kwargs: Any) -> Pair:
        name, value = name_of(node), node.meta.get("val")
        rule = self._rule(name, node, value)
        if rule is None:
            raise Refused(f"{self._called(node)} of the carried value ({self.roll.where(offset)})")
        if not isinstance(value, Tensor) or value.dtype != self.state.dtype:
            raise Refused(f"the carried value is rounded at every step ({self.roll.where(offset)})")
        if value.shape != self.state.shape:
            raise Refused(f"{name} changes the form of the carried value ({self.roll.where(offset)})")
        try:
            return rule(self, args, kwargs)
        except Refused as e:
            raise Refused(str(e) if str(e).endswith(")") else f"{e} ({self.roll.where(offset)})") from None
        except (IndexError, KeyError, TypeError, ValueError) as e:
            raise Refused(f"{name} with arguments in another form ({self.roll.where(offset)})") from e

    def _rule(self, name: str, node: fx.Node, value: Any) -> Callable[..., Pair] | None:
        if node.op == "call_module":
            child = self.maker.module.get_submodule(str(node.target))
            quiet = isinstance(child, nn.Identity) or (isinstance(child, nn.Dropout) and not child.training)
            return _kept if quiet else None
        if name in SUMS:
            return lambda me, args, kwargs: me.sum(args, kwargs, SUMS[name])
        return RULES.get(name)

    def _called(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.maker.module.get_submodule(str(node.target))).__name__})"
        return name_of(node)

    # -- rules ---------------------------------------------------------------------------------------------------------

    def sum(self, args: Any, kwargs: Any, sign: int) -> Pair:
        x, y = map(self._pair, args[:2])
        scale = self.roll.operand(kwargs["alpha"]) if "alpha" in kwargs else 1
        y = self.scaled(y, scale)
        join = self.maker.plus if sign > 0 else self.maker.minus
        return join(x[0], y[0]), join(x[1], y[1])

    def scaled(self, pair: Pair, by: Any) -> Pair:
        return self.maker.times(pair[0], by), self.maker.times(pair[1], by)

    def product(self, x: Any, y: Any) -> Pair:
        if self._depends(x) and self._depends(y):
            raise Refused("a product of the carried value with what is computed from it")
        if self._depends(y):
            x, y = y, x
        factor = self._pair(y)[1]
        return (None, None) if factor is None else self.scaled(self._pair(x), factor)


def _kept(me: Affine, args: Any, kwargs: Any) -> Pair:
    return me._pair(args[0])


def _product(me: Affine, args: Any, kwargs: Any) -> Pair:
    return me.product(*args[:2])


def _quotient(me: Affine, args: Any, kwargs: Any) -> Pair:
    if me._depends(args[1]) or kwargs:
        raise Refused("a division by the carried value")
    by, pair = me.roll.operand(args[1]), me._pair(args[0])
    return me.maker.over(pair[0], by), me.maker.over(pair[1], by)


def _negative(me: Affine, args: Any, kwargs: Any) -> Pair:
    pair = me._pair(args[0])
    return me.maker.minus(None, pair[0]), me.maker.minus(None, pair[1])


def _reversed(me: Affine, args: Any, kwargs: Any) -> Pair:
    return me.sum([args[1], args[0]], kwargs, -1)


def _lerp(me: Affine, args: Any, kwargs: Any) -> Pair:
    start, end, weight = args if len(args) == 3 else (*args, kwargs["weight"])
    if me._depends(weight):
        raise Refused("a weight of lerp that is computed from the carried value")
    by = me.roll.operand(weight)
    stays = me.maker.joined(operator.sub, 1.0, by)
    old, new = me.scaled(me._pair(start), stays), me.scaled(me._pair(end), by)
    return me.maker.plus(old[0], new[0]), me.maker.plus(old[1], new[1])


def _addcmul(me: Affine, args: Any, kwargs: Any) -> Pair:
    start = me._pair(args[0])
    new = (
        me.product(args[1], args[2])
        if any(map(me._depends, args[1:3]))
        else me.scaled(me._pair(args[1]), me._pair(args[2])[1])
    )
    new = me.scaled(new, me.roll.operand(kwargs["value"])) if "value" in kwargs else new
    return me.maker.plus(start[0], new[0]), me.maker.plus(start[1], new[1])


def _where(me: Affine, args: Any, kwargs: Any) -> Pair:
    mask, x, y = args
    if me._depends(mask):
        raise Refused("a choice by the carried value")
    by, x, y = me.roll.operand(mask), me._pair(x), me._pair(y)
    return me.maker.chosen(by, x[0], y[0]), me.maker.chosen(by, x[1], y[1])


def _filled(me: Affine, args: Any, kwargs: Any) -> Pair:
    return _where(me, (args[1], args[2], args[0]), kwargs)


RULES: dict[str, Callable[[Affine, Any, Any], Pair]] = {
    **dict.fromkeys(KEPT, _kept), **dict.fromkeys(PRODUCTS, _product), **dict.fromkeys(QUOTIENTS, _quotient),
    "neg": _negative, "negative": _negative, "rsub": _reversed, "lerp": _lerp, "addcmul": _addcmul, "where": _where,
    "masked_fill": _filled,
}  # fmt: skip
