"""What stands where a closed block was, if its place must stay: it hands its first tensor on as the block did."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gatec.blocks.numbers import numbers
from gatec.capture import Call, unit_of
from gatec.capture.around import first, spread, with_first
from gatec.errors import Refused
from gatec.rewrite import Undo

PLAIN = (bool, int, float, str, type(None))


class Passing(nn.Module):
    """Returns the first tensor that it takes, in the form of what a block returned."""

    def __init__(self, form: Any, order: tuple[str, ...]) -> None:
        super().__init__()
        self.form, self.order = form, order

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *(kwargs[name] for name in self._sorted(kwargs))]
        return with_first(self.form, next(x for x in map(first, given) if x is not None))

    def _sorted(self, kwargs: dict[str, Any]) -> Iterator[str]:
        yield from (name for name in self.order if name in kwargs)
        yield from (name for name in kwargs if name not in self.order)


def pass_by(model: nn.Module, path: str, call: Call, undo: Undo) -> None:
    """Put a Passing where the block at `path` is. Raises Refused where its caller takes more than one tensor from it."""
    outer, _, name = path.rpartition(".")
    container, block = model.get_submodule(outer), model.get_submodule(path)
    if numbers(container):
        raise Refused(f"the layers below {outer} are numbered by their place in it, for their cache")
    form = with_first(call.output, torch.empty(0))
    others = [x for x in spread((form,), {})[0] if not isinstance(x, PLAIN) and x is not first(form)]
    if others:
        raise Refused(f"its caller takes more from it than one tensor: {type(others[0]).__name__}")
    unit = unit_of(block)
    forward = (unit.original if unit else type(block)).forward
    order = tuple(inspect.signature(forward).parameters)[1:]
    undo.append(partial(setattr, container, name, block))
    setattr(container, name, Passing(form, order).train(block.training))
