"""A loop whose state is a matrix for each head, and whose steps read it with a key: one linear attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from gatec.errors import Refused
from gatec.linear_attention import linear_attention
from gatec.reroll.affine import Values
from gatec.reroll.factors import Factors, logarithm
from gatec.reroll.loops import Carry, Local, leaves
from gatec.reroll.matrices import Matrices, Matrix, Row


class Rolling(Values, Protocol):
    down: bool

    def outer(self, value: Any) -> Any: ...


@dataclass
class Attention:
    """What its steps read, by offset, and the last state."""

    reads: dict[int, fx.Node]
    last: fx.Node


def attention(roll: Rolling, cycle: frozenset[int], carried: int) -> Attention | None:
    """None where the state is no matrix, or more of it is wanted than reads and its last value."""
    state = roll.loop.node(carried).meta.get("val")
    if not isinstance(state, Tensor) or state.ndim < 2 or not state.is_floating_point():
        return None
    for keys in (-2, -1):
        try:
            return Attended(roll, cycle, carried, state, keys).emitted()
        except Refused:
            continue
    return None


class Attended:
    """One loop with one choice of which dimension its reads sum over."""

    def __init__(self, roll: Rolling, cycle: frozenset[int], carried: int, state: Tensor, keys: int) -> None:
        self.roll, self.maker, self.loop = roll, roll.maker, roll.loop
        self.cycle, self.carried, self.state, self.keys = cycle, carried, state, keys
        carries = {k for j in cycle for k in leaves(self.loop.arguments[j]) if isinstance(k, Carry)}
        if len(carries) != 1:
            raise Refused("its first step starts from several values")
        self.carry = carries.pop()
        self.factors = Factors(roll, state, keys)

    def emitted(self) -> Attention:
        self.only_last()
        update, reads = self.update(), self.reads()
        k, v, erase, write = self.parts(update)
        if not reads and erase is None:
            raise Refused("nothing reads its state")
        maker, decay = self.maker, None if _one(update.decay) else update.decay
        exponent = logarithm(maker, decay)
        start = self.roll.outer(self.carry.first)
        if getattr(start.meta["val"], "shape", None) != self.state.shape:
            raise Refused("its state changes its form")
        start = maker.make("to", start, self.state.dtype, rolled=False)
        options = {
            "erase": None if erase is None else self.operand(erase), "log": exponent is not None,
            "write": None if write is None else self.operand(write),
            "state": start if self.keys == -2 else maker.make("transpose", start, -1, -2, rolled=False),
        }  # fmt: skip
        given = [self.operand(k), self.operand(v, self.factors.keys)]
        if decay is not None:
            given.append(self.operand(exponent if exponent is not None else decay, wide=False))
        queries = {row.read: self.operand(row.read) for row in reads.values()} or {None: given[0]}
        found, last = {}, None
        for query, q in queries.items():
            pair = maker.make(linear_attention, q, *given, **options, rolled=False)
            found[query] = maker.make(operator.getitem, pair, 0, rolled=False)
            last = maker.make(operator.getitem, pair, 1, rolled=False)
        assert last is not None
        last = maker.make("to", last, self.state.dtype, rolled=False)
        last = last if self.keys == -2 else maker.make("transpose", last, -1, -2, rolled=False)
        whole = maker.make("unsqueeze", last, 0)
        return Attention({j: self.result(found[row.read], row, j) for j, row in reads.items()}, whole)

    def only_last(self) -> None:
        """Refuse where a step outside of the loop reads another state than the last."""
        own = {n for step in self.loop.steps for n in step}
        for j in self.cycle:
            readers = [any(u not in own for u in step[j].users) for step in self.loop.steps]
            if any(readers[:-1]) or (readers[-1] and j != self.carried):
                raise Refused("a state is read after the loop that is not the last")
        for k, j, later in self.loop.links:
            if j not in self.cycle and k in self.cycle and (later or k != self.carried):
                raise Refused("a step reads more than its own last state")

    def update(self) -> Matrix:
        """What one step makes of the state."""
        values = Matrices(self.roll, self.state, self.keys, self.carry)
        for j in sorted(self.cycle):
            found = values.of(j)
            if j == self.carried:
                return values.matrix(found)
        raise Refused("no state is carried")

    def reads(self) -> dict[int, Row]:
        """The reads of a step's last state, by offset."""
        values = Matrices(self.roll, self.state, self.keys, Local(self.carried))
        found: dict[int, Row] = {}
        own = {n for step in self.loop.steps for n in step}
        for j in range(len(self.loop.steps[0])):
            if j in self.cycle or not any(values.depends(k) for k in leaves(self.loop.arguments[j])):
                continue
            value = values.of(j)
            if isinstance(value, Row):
                del values.known[j]  # from here on it is a value like others
                found[j] = self.undecayed(value)
            elif any(u not in own for step in self.loop.steps for u in step[j].users):
                raise Refused("a matrix of state is read after the loop")
        return found

    def undecayed(self, row: Row) -> Row:
        """The same read, its decay a factor of the key."""
        if row.read is None:
            raise Refused("a row that reads no state")
        return Row(self.factors.times(row.read, row.decay), 1.0, row.scale, row.new)

    def parts(self, update: Matrix) -> tuple[Any, Any, Any, Any]:
        """The key and the row that are added, the key that is asked for, and the key it is taken from."""
        if update.decay is None or self.factors.kind_of(update.decay) not in ("key", "number"):
            raise Refused("nothing of the state is kept")
        new: dict[Any, Any] = {}
        erased: list[tuple[Any, Row]] = []
        for key, row in update.terms:
            if row.new is not None:
                new[key] = self.maker.plus(new.get(key), row.new)
            if row.read is not None:
                erased.append((key, row))
        if len(new) != 1 or len(erased) > 1:
            raise Refused("several outer products at a step")
        ((k, v),) = new.items()
        if not erased:
            return k, v, None, None
        key, row = erased[0]
        row = self.undecayed(row) if _one(update.decay) else row
        if row.decay is not update.decay and not _one(update.decay):
            raise Refused("what it erases does not decay like its state")
        if self.factors.kind_of(row.scale) != "number":
            raise Refused("it erases not all values alike")
        return k, v, row.read, self.factors.times(key, self.factors.times(row.scale, -1.0))

    def operand(self, value: Any, along: int | None = None, *, wide: bool = True) -> fx.Node:
        """Of all steps, as the operator takes it: (..., steps, width); `along` is the dimension that is left out."""
        maker, gone = self.maker, self.factors.values if along is None else along
        if not isinstance(value, fx.Node):
            value = maker.make("new_full", self.anchor(), (1, 1), float(value), rolled=False)
        rolled = value in maker.rolled
        while maker.rank(value) < 2:
            value = maker.make("unsqueeze", value, 1 if rolled else 0, rolled=rolled)
        value = maker.raised(value, self.state.ndim)
        if rolled and self.roll.down:
            value = maker.make("flip", value, (0,))
        value = maker.make("squeeze", value, gone, rolled=rolled)
        value = maker.make("movedim", value, 0, -2, rolled=False) if rolled else maker.make(
            "unsqueeze", value, -2, rolled=False)  # fmt: skip
        size = self.state.shape[-3 - gone]
        if wide and value.meta["val"].shape[-1] != size:
            value = maker.make("expand", value, *(-1,) * (value.meta["val"].ndim - 1), size, rolled=False)
        return maker.make("to", value, self.state.dtype, rolled=False)

    def anchor(self) -> fx.Node:
        """Any tensor of the state's device."""
        first: fx.Node = self.roll.outer(self.carry.first)
        return first

    def result(self, out: fx.Node, row: Row, offset: int) -> fx.Node:
        """What the node of a step finds, for all steps."""
        maker, node = self.maker, self.loop.node(offset)
        value = maker.make("movedim", out, -2, 0)
        value = maker.make("flip", value, (0,)) if self.roll.down else value
        value = maker.make("unsqueeze", value, self.keys)
        value = maker.times(value, row.scale)
        value = value if row.new is None else maker.plus(value, row.new)
        form = self.factors.form_of(node.meta["val"].shape)
        if form == "vector":
            value = maker.make("squeeze", value, self.keys)
        elif form == "flipped":
            value = maker.make("transpose", value, -1, -2)
        value = maker.make("to", value, node.meta["val"].dtype)
        if value.meta["val"].shape[1:] != node.meta["val"].shape:
            raise Refused("a read of the state in another form")
        return value


def _one(value: Any) -> bool:
    return not isinstance(value, (fx.Node, torch.Tensor)) and value == 1
