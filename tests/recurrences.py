"""Gated recurrences as published, for tests of the scan kernel: the decay, the new part, and operand shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels.scan import render


@dataclass(frozen=True)
class Recurrence:
    """`decay_of` and `new_of` say which of the operands each of the two functions takes."""

    name: str
    decay: Callable[..., Tensor]
    new: Callable[..., Tensor]
    shapes: tuple[tuple[int | None, ...], ...]  # None is the number of steps
    decay_of: tuple[int, ...]
    new_of: tuple[int, ...]

    def operands(self, made: Callable[[tuple[int, ...]], Tensor], steps: int) -> list[Tensor]:
        return [made(tuple(steps if n is None else n for n in s)) for s in self.shapes]

    def kernel(self, operands: list[Tensor]) -> Kernel:
        decay, new = (
            derive(f, [operands[i] for i in of]) for f, of in ((self.decay, self.decay_of), (self.new, self.new_of))
        )
        return render(self.name, "tests", decay, new)

    def order(self) -> list[int]:
        """The operands as the kernel takes them."""
        return list(dict.fromkeys((*self.decay_of, *self.new_of)))


def plain(a: Tensor) -> Tensor:
    return torch.sigmoid(a)


def given(b: Tensor) -> Tensor:
    return b


def rate(r: Tensor, w: Tensor) -> Tensor:
    return torch.exp(-8.0 * F.softplus(w) * torch.sigmoid(r))


def scaled(r: Tensor, w: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(-16.0 * F.softplus(w) * torch.sigmoid(r))) * torch.sigmoid(gate) * x


def stays(z: Tensor) -> Tensor:
    return 1 - torch.sigmoid(z)


def candidate(z: Tensor, x: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.tanh(x)


def bounded(f: Tensor, low: Tensor) -> Tensor:
    return low + (1 - low) * torch.sigmoid(f)


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k * v


RECURRENCES = [
    Recurrence("scan", plain, given, ((3, None, 5), (3, None, 5)), (0,), (1,)),
    Recurrence("average", plain, given, ((5,), (3, None, 5)), (0,), (1,)),
    Recurrence("rglru", rate, scaled, ((3, None, 5), (5,), (3, None, 5), (3, None, 5)), (0, 1), (0, 1, 2, 3)),
    Recurrence("mingru", stays, candidate, ((3, None, 5), (3, None, 5)), (0,), (0, 1)),
    Recurrence("hgrn", bounded, given, ((3, None, 5), (5,), (3, None, 5)), (0, 1), (2,)),
    Recurrence("gla", plain, outer, ((2, None, 3, 1), (2, None, 3, 1), (2, None, 1, 5)), (0,), (1, 2)),
]
