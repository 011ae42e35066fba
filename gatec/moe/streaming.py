"""Batches on their way through a model: blocks that stand in a row run once, and not again for every layer behind them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

from gatec.inputs import example_inputs
from gatec.moe.blocks import Row, called, moving


def drawn(data: Iterable[Any], most: int, seed: int) -> list[Any]:
    """At most so many batches, from all of them alike, in their order; the data is gone through once."""
    draw = random.Random(seed)
    found: dict[int, Any] = {}
    for number, batch in enumerate(data):
        if len(found) == most:
            place = draw.randrange(number + 1)
            if place >= most:
                continue
            del found[list(found)[place]]
        found[number] = batch
    return list(found.values())


class Stream:
    """The batches as they come to the modules of a model, one module after another."""

    def __init__(self, model: nn.Module, given: list[Any]) -> None:
        self.model, self.given = model, given
        self.rows: dict[nn.Module, Row | None] = {}

    def calls(self, module: nn.Module) -> Iterator[Callable[[], Any]]:
        """For each batch a call that comes by the module, through no more of the model before it than it has to."""
        for row in self.rows_with(module):
            number = row.number(module)
            if number >= row.at:
                row.advance(number)
                return iter([partial(row.run, i) for i in range(len(self.given))])
        return iter([partial(self.run, batch) for batch in self.given])

    def run(self, batch: Any) -> Any:
        args, kwargs = example_inputs(self.model, batch)
        return self.model(*args, **kwargs)

    def rows_with(self, module: nn.Module) -> Iterator[Row]:
        """Rows of blocks with the module in one of them, the outermost first."""
        for holder in self.model.modules():
            many = isinstance(holder, (nn.ModuleList, nn.Sequential)) and len(list(holder.children())) > 1
            if not many or not any(m is module for child in holder.children() for m in child.modules()):
                continue
            if holder not in self.rows:
                self.rows[holder] = self.row(list(holder.children()))
            if row := self.rows[holder]:
                yield row

    def row(self, blocks: list[nn.Module]) -> Row | None:
        """The blocks, if each gets what the one before it gives, and nothing else that depends on blocks."""
        real = called(self.model, blocks, partial(self.run, self.given[0]))
        slot = moving(real, len(blocks))
        if slot is None:
            return None
        row = Row(self.model, blocks, slot)
        for batch in self.given:
            row.take(called(self.model, blocks, partial(self.run, batch), partial(row.passed, real[0].out)))
        return row if row.explains(real) else None
