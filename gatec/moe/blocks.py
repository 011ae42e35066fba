"""Blocks that stand in a row: what each is given besides what the one before it gives is known before any of them runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from gatec.capture import untouched

Slots = dict[int | str, Any]  # the arguments of a call, by number or name


class Reached(Exception):
    """What was looked for was reached: what comes after it is not needed."""


@dataclass
class Called:
    """A block's call; `copied` is the tensor it gave, before anything was written over it."""

    number: int
    slots: Slots
    out: Any
    copied: Tensor | None


@dataclass
class Row:
    """Blocks in the order of their calls; a value moves through them in the same slot.

    values   of each batch, as it comes to the block `at`
    others   of each batch, what each block is given besides
    """

    model: nn.Module
    blocks: list[nn.Module]
    slot: int | str
    values: list[Tensor] = field(default_factory=list)
    others: list[list[Slots]] = field(default_factory=list)
    at: int = 0

    def number(self, module: nn.Module) -> int:
        return next(i for i, block in enumerate(self.blocks) if any(m is module for m in block.modules()))

    def passed(self, out: Any, slots: Slots) -> Any:
        """What a block that changes nothing gives, in the form of `out`."""
        return slots[self.slot] if isinstance(out, Tensor) else type(out)([slots[self.slot], *out[1:]])

    def take(self, calls: list[Called]) -> None:
        self.values.append(calls[0].slots[self.slot].cpu())
        self.others.append([{k: v for k, v in call.slots.items() if k != self.slot} for call in calls])

    def explains(self, real: list[Called]) -> bool:
        """Whether blocks of the first batch were given the same where none of them computed, and one gives the same again."""
        for call, others in zip(real, self.others[0], strict=True):
            if not same({k: v for k, v in call.slots.items() if k != self.slot}, others):
                return False
        with torch.no_grad(), untouched(self.model):
            again = value_of(self.run(0))
        was = real[0].copied
        return was is not None and bool(torch.allclose(again, was, rtol=1e-3, atol=1e-5))

    def run(self, batch: int) -> Any:
        """The block that is next, on what comes to it."""
        block, value = self.blocks[self.at], self.values[batch]
        device = next((p.device for p in block.parameters()), value.device)
        slots = {**copy.deepcopy(self.others[batch][self.at]), self.slot: value.to(device, copy=True)}
        numbered = sorted(k for k in slots if isinstance(k, int))
        return block(*(slots[k] for k in numbered), **{k: v for k, v in slots.items() if isinstance(k, str)})

    def advance(self, number: int) -> None:
        """Bring every batch to the block of this number."""
        with torch.no_grad(), untouched(self.model):
            while self.at < number:
                for batch in range(len(self.values)):
                    self.values[batch] = value_of(self.run(batch)).cpu()
                    self.others[batch][self.at] = {}
                self.at += 1


def called(model: nn.Module, blocks: list[nn.Module], run: Callable[[], Any],
           gives: Callable[[Slots], Any] | None = None) -> list[Called]:  # fmt: skip
    """The calls of blocks while `run` runs; with `gives` these do not compute, and `run` ends at the last of them."""
    calls: list[Called] = []

    def standing(number: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(v, FakeTensor) for v in (*args, *kwargs.values())):  # a capture
                return own(*args, **kwargs)
            slots: Slots = dict(enumerate(args))
            slots.update(kwargs)
            out = gives(slots) if gives else own(*args, **kwargs)
            value = value_of(out)
            calls.append(Called(number, slots, out, None if value is None or number else value.clone()))
            if gives and number == len(blocks) - 1:
                raise Reached
            return out

        return forward

    with torch.no_grad(), untouched(model), instead(blocks, standing), suppress(Reached):
        run()
    return calls


@contextmanager
def instead(blocks: list[nn.Module], standing: Callable[[int, Callable[..., Any]], Any]) -> Iterator[None]:
    """Other forwards of these blocks."""
    before = [dict(vars(block)) for block in blocks]
    try:
        for number, block in enumerate(blocks):
            vars(block)["forward"] = standing(number, block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del vars(block)["forward"]
            vars(block).update({k: v for k, v in own.items() if k == "forward"})


def moving(calls: list[Called], blocks: int) -> int | str | None:
    """The slot in which each block is given what the one before it gave, if it is the same one in all of them."""
    if [call.number for call in calls] != list(range(blocks)):
        return None
    found = set(calls[0].slots)
    for before, after in pairwise(calls):
        out = value_of(before.out)
        found &= {k for k, v in after.slots.items() if v is out}
    slot = found.pop() if len(found) == 1 else None
    values = [] if slot is None else [call.slots[slot] for call in calls] + [value_of(calls[-1].out)]
    tensors = [v for v in values if isinstance(v, Tensor)]
    alike = len({(v.shape, v.dtype) for v in tensors}) == 1 and len(tensors) == len(values)
    return slot if alike else None


def value_of(out: Any) -> Any:
    """The tensor that a block gives; None where it gives more than one."""
    if not isinstance(out, (tuple, list)) or not out or any(isinstance(v, Tensor) for v in out[1:]):
        return out if isinstance(out, Tensor) else None
    return out[0]


def same(one: Any, other: Any) -> bool:
    """Equal values; of objects that hold who knows what only the type counts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) if isinstance(one, (int, float, str, bool)) else True
