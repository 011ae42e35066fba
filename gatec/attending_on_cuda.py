"""`gatec::linear_attention` and its gradients on CUDA: the generated kernel beside PyTorch's own operators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.dispatch import CHOOSER, Run, Side
from gatec.kernel import Kernel
from gatec.kernels.recurrence import FLOATS, LONGEST, render
from gatec.linear_attention import operator

WIDEST = 128  # of keys and of values
Maybe = Tensor | None
Operands = tuple[Tensor, Tensor, Tensor, Maybe, Maybe, Maybe, Maybe]


@functools.cache
def kernel_for(kind: str, dtypes: tuple[torch.dtype, ...], out: torch.dtype, state: bool, delta: bool) -> Kernel:
    return render(kind, dtypes, out, state, delta)


def kernel_of(given: Sequence[Maybe], log: bool) -> Kernel | None:
    """The one for these operands, if there is one: decays are logarithms, no type is wider than float32."""
    q, k, v, decay, erase, _, state = given
    there = [x for x in given if x is not None]
    assert q is not None and k is not None and v is not None
    plain = (decay is None or log) and all(x.dtype in FLOATS for x in there)
    fits = max(k.shape[-1], v.shape[-1]) <= WIDEST and v.shape[-2] <= LONGEST
    if not (plain and fits and v.numel() and k.numel()):
        return None
    kind = "none" if decay is None else "keyed" if decay.shape[-1] == k.shape[-1] > 1 else "shared"
    out = operator.types(tuple(given))[0]
    return kernel_for(kind, tuple(x.dtype for x in there), out, state is not None, erase is not None)


@dataclass(frozen=True)
class Given:
    """Which of q, k, v, decay, erase, write and state there are."""

    decay: bool
    delta: bool
    state: bool

    @classmethod
    def of(cls, given: Sequence[Maybe]) -> Given:
        _, _, _, decay, erase, _, state = given
        return cls(decay is not None, erase is not None, state is not None)

    def whole(self, there: Sequence[Tensor]) -> Operands:
        q, k, v, *rest = there
        more = iter(rest)
        decay, erase, write, state = (
            next(more) if given else None for given in (self.decay, self.delta, self.delta, self.state)
        )
        return q, k, v, decay, erase, write, state


@dataclass(frozen=True)
class Falling:
    """A run for stand-ins too, whose states would grow without bounds; `run` is for operands.

    Logarithms of decays become negative. What is erased becomes a part of what is there: keys shrink to a length below
    one, by powers of two, and the one that is erased along gets the signs of the one that is asked for.
    """

    run: Run
    given: Given
    before: int = 0  # tensors in front of the operands

    def __call__(self, *tensors: Tensor) -> Any:
        grads, there = tensors[: self.before], tensors[self.before :]
        q, k, v, decay, erase, write, state = self.given.whole(there)
        decay = None if decay is None else -decay.abs()
        if erase is not None and write is not None:
            erase, write = shortened(erase), shortened(write.copysign(erase))
        whole = (q, k, v, decay, erase, write, state)
        return self.run(*grads, *(x for x in whole if x is not None))


def shortened(x: Tensor) -> Tensor:
    """With a length from a half to one, and the same digits."""
    exponent = torch.frexp(x.float().norm(dim=-1, keepdim=True)).exponent
    return torch.ldexp(x, -exponent).to(x.dtype)


def _eager(given: Given, *there: Tensor) -> tuple[Tensor, Tensor]:
    return operator.forward(*given.whole(there), True)


def _launched(kernel: Kernel, *there: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = kernel.load().forward(*there)
    return found


def _eager_back(given: Given, needs: tuple[bool, ...], grad: Tensor, last: Tensor, *there: Tensor) -> list[Tensor]:
    wanted, whole = iter(needs), given.whole(there)
    asked = [x is not None and next(wanted) for x in whole]
    return operator.backward(grad, last, *whole, True, asked)


def _launched_back(kernel: Kernel, needs: tuple[bool, ...], grad: Tensor, last: Tensor, *there: Tensor) -> list[Tensor]:
    return [x for x in kernel.load().backward(grad, last, *there, needs=needs) if x is not None]


@functools.cache
def forward_side(kernel: Kernel, given: Given) -> Side:
    eager = Falling(partial(_eager, given), given)
    ways = {"kernel": Falling(partial(_launched, kernel), given)}
    return Side(f"{kernel.name}_{kernel.key}", "forward", ways, eager, eager)


@functools.cache
def backward_side(kernel: Kernel, given: Given, needs: tuple[bool, ...]) -> Side:
    eager = Falling(partial(_eager_back, given, needs), given, 2)
    ways = {"kernel": Falling(partial(_launched_back, kernel, needs), given, 2)}
    name = "backward-" + "".join("01"[need] for need in needs)
    return Side(f"{kernel.name}_{kernel.key}", name, ways, eager, eager)


def on_cuda(q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe, state: Maybe,
            log: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernel where it was verified on this device and measured faster there, else the body."""
    given = (q, k, v, decay, erase, write, state)
    kernel, there = kernel_of(given, log), [x for x in given if x is not None]
    way = None
    if kernel is not None:
        way = CHOOSER.way(forward_side(kernel, Given.of(given)), there)
    if not isinstance(way, Falling):
        return operator.forward(*given, log)
    found: tuple[Tensor, Tensor] = way.run(*there)
    return found


def backward_on_cuda(grad: Tensor, last: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe,
                     write: Maybe, state: Maybe, log: bool, needs: list[bool]) -> list[Tensor]:  # fmt: skip
    given = (q, k, v, decay, erase, write, state)
    kernel, there = kernel_of(given, log), [x for x in given if x is not None]
    wanted = tuple(need for x, need in zip(given, needs, strict=True) if x is not None)
    way = None
    if kernel is not None and any(wanted):
        way = CHOOSER.way(backward_side(kernel, Given.of(given), wanted), [grad, last, *there])
    if not isinstance(way, Falling):
        return operator.backward(grad, last, *given, log, needs)
    found: list[Tensor] = way.run(grad, last, *there)
    return found


operator.LIBRARY.impl("linear_attention", on_cuda, "CUDA")
operator.LIBRARY.impl("linear_attention_backward", backward_on_cuda, "CUDA")
