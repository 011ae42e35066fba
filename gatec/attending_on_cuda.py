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
Given = tuple[Tensor, Tensor, Tensor, Maybe, Maybe, Maybe, Maybe]


@functools.cache
def kernel_for(kind: str, dtypes: tuple[torch.dtype, ...], out: torch.dtype, state: bool) -> Kernel:
    return render(kind, dtypes, out, state)


def kernel_of(given: Sequence[Maybe], log: bool) -> Kernel | None:
    """The one for these operands, if there is one: decays are logarithms, nothing is erased, no type is wider than float32."""
    q, k, v, decay, erase, _, state = given
    there = [x for x in given if x is not None]
    assert q is not None and k is not None and v is not None
    plain = erase is None and (decay is None or log) and all(x.dtype in FLOATS for x in there)
    fits = max(k.shape[-1], v.shape[-1]) <= WIDEST and v.shape[-2] <= LONGEST
    if not (plain and fits and v.numel() and k.numel()):
        return None
    kind = "none" if decay is None else "keyed" if decay.shape[-1] == k.shape[-1] > 1 else "shared"
    return kernel_for(kind, tuple(x.dtype for x in there), operator.types(tuple(given))[0], state is not None)


@dataclass(frozen=True)
class Falling:
    """A run for stand-ins too, whose logarithms of decays would let a state grow without bounds; `run` is for operands."""

    run: Run
    decay: int | None

    def __call__(self, *tensors: Tensor) -> Any:
        return self.run(*(-x.abs() if i == self.decay else x for i, x in enumerate(tensors)))


def whole(decay: bool, state: bool, there: Sequence[Tensor]) -> Given:
    """q, k, v, decay, erase, write, state."""
    q, k, v, *rest = there
    return q, k, v, rest[0] if decay else None, None, None, rest[-1] if state else None


def _eager(decay: bool, state: bool, *there: Tensor) -> tuple[Tensor, Tensor]:
    return operator.forward(*whole(decay, state, there), True)


def _launched(kernel: Kernel, *there: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = kernel.load().forward(*there)
    return found


def _eager_back(decay: bool, state: bool, needs: tuple[bool, ...], grad: Tensor, last: Tensor,
                *there: Tensor) -> list[Tensor]:  # fmt: skip
    wanted = iter(needs)
    given = whole(decay, state, there)
    asked = [x is not None and next(wanted) for x in given]
    return operator.backward(grad, last, *given, True, asked)


def _launched_back(kernel: Kernel, needs: tuple[bool, ...], grad: Tensor, last: Tensor, *there: Tensor) -> list[Tensor]:
    return [x for x in kernel.load().backward(grad, last, *there, needs=needs) if x is not None]


@functools.cache
def forward_side(kernel: Kernel, decay: bool, state: bool) -> Side:
    at = 3 if decay else None
    eager = Falling(partial(_eager, decay, state), at)
    ways = {"kernel": Falling(partial(_launched, kernel), at)}
    return Side(f"{kernel.name}_{kernel.key}", "forward", ways, eager, eager)


@functools.cache
def backward_side(kernel: Kernel, decay: bool, state: bool, needs: tuple[bool, ...]) -> Side:
    at = 5 if decay else None
    eager = Falling(partial(_eager_back, decay, state, needs), at)
    ways = {"kernel": Falling(partial(_launched_back, kernel, needs), at)}
    name = "backward-" + "".join("01"[need] for need in needs)
    return Side(f"{kernel.name}_{kernel.key}", name, ways, eager, eager)


def on_cuda(q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe, state: Maybe,
            log: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernel where it was verified on this device and measured faster there, else the body."""
    given = (q, k, v, decay, erase, write, state)
    kernel, there = kernel_of(given, log), [x for x in given if x is not None]
    way = None
    if kernel is not None:
        way = CHOOSER.way(forward_side(kernel, decay is not None, state is not None), there)
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
        side = backward_side(kernel, decay is not None, state is not None, wanted)
        way = CHOOSER.way(side, [grad, last, *there])
    if not isinstance(way, Falling):
        return operator.backward(grad, last, *given, log, needs)
    found: list[Tensor] = way.run(grad, last, *there)
    return found


operator.LIBRARY.impl("linear_attention", on_cuda, "CUDA")
operator.LIBRARY.impl("linear_attention_backward", backward_on_cuda, "CUDA")
