"""The form of an operand: everything about it but its values, from which stand-ins are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes: what one 128-bit access takes
Exact = tuple[Any, ...]


@dataclass(frozen=True)
class Form:
    """`low`, `high` and `rising` describe integers, which are often indices: a stand-in stays within what they may be."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool = True
    low: int = 0
    high: int = 1
    rising: bool = False

    @classmethod
    def bare(cls, x: Tensor) -> Form:
        """Without a look at the values, for which the host would have to wait."""
        return cls(tuple(x.shape), tuple(x.stride()), x.dtype, x.is_meta or x.data_ptr() % ALIGNED == 0)

    @classmethod
    def of(cls, x: Tensor) -> Form:
        form = cls.bare(x)
        if x.is_floating_point() or x.dtype == torch.bool or x.is_meta or not x.numel():
            return form
        rising = x.ndim == 1 and bool((x[1:] >= x[:-1]).all())
        return replace(form, low=int(x.min()), high=int(x.max()), rising=rising)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def leading(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def layout(self) -> str:
        """Dense, or which dimension follows which in memory; 0 is a broadcast one. Wide accesses need aligned strides."""
        order = sorted(range(len(self.shape)), key=lambda d: -self.stride[d])
        expected, dense = 1, True
        for d in reversed(range(len(self.shape))):
            dense &= self.shape[d] == 1 or self.stride[d] == expected
            expected *= self.shape[d]
        wide = self.aligned and all(s * self.dtype.itemsize % ALIGNED == 0 for s in self.stride if s != 1)
        kind = "dense" if dense else "".join(str(d) if self.stride[d] else "0" for d in order) + "s"
        return kind + (":16" if wide else "")

    def make(self, device: torch.device, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """A tensor of this form; floats are normal, integers within their bounds."""
        offset = 0 if self.aligned else 1
        size = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if self.elements else 0
        if self.dtype.is_floating_point:
            flat = torch.randn(offset + size, generator=generator, dtype=torch.float32) * scale
        elif self.dtype == torch.bool:
            flat = torch.randint(0, 2, (offset + size,), generator=generator)
        else:
            flat = torch.randint(self.low, self.high + 1, (offset + size,), generator=generator)
            if self.rising and size:
                flat[offset:] = flat[offset:].sort().values
                flat[-1] = self.high
        memory = flat.to(self.dtype).to(device)
        return memory.as_strided(self.shape, self.stride, offset)

    def resized(self, old: int, new: int) -> Form:
        """With `new` in the place of every size `old` but the last, and strides that follow."""
        shape, stride = list(self.shape), list(self.stride)
        for d in range(len(shape) - 1):
            if shape[d] == old and old != 1:
                step, shape[d] = stride[d], new
                stride = [s * new // old if s >= step * old and step else s for s in stride]
        return replace(self, shape=tuple(shape), stride=tuple(stride))


def exact(tensors: Sequence[Tensor]) -> Exact:
    """What tells two calls apart, cheap enough for every call."""
    return tuple((t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % ALIGNED == 0) for t in tensors)


def described(forms: Sequence[Form]) -> list[str]:
    """Dtypes, layouts and sizes, the number of rows rounded up to a power of two."""
    most = max((len(f.shape) for f in forms), default=0)
    return [f"{str(f.dtype)[6:]}[{_rows(f, most)}x{f.width}]{f.layout}" for f in forms]


def _rows(form: Form, most: int) -> str:
    """Operands with the most dimensions have rows; the sizes of others belong to the model."""
    if len(form.shape) < most or len(form.shape) < 2:
        return "x".join(map(str, form.shape[:-1])) or "1"
    return f"<={bucket(form.leading)}"


def bucket(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()


def ragged(forms: Sequence[Form], largest: int) -> list[Form]:
    """The same with a prime number of rows, at most `largest` of the size that counts them; itself where there is none."""
    old = token_size(forms)
    new = _prime(min(old - 1, largest)) if old > 2 else old
    return [f.resized(old, new) for f in forms]


def token_size(forms: Sequence[Form]) -> int:
    """The largest size, but for the last dimension, of an operand with the most dimensions."""
    most = max(forms, key=lambda f: len(f.shape), default=None)
    return max(most.shape[:-1], default=1) if most else 1


def fitting(forms: Sequence[Form], elements: int) -> list[Form]:
    """Fewer rows, so that no operand has more than `elements`."""
    largest = max((f.elements for f in forms), default=0)
    if largest <= elements:
        return list(forms)
    old = token_size(forms)
    return [f.resized(old, max(1, old * elements // largest)) for f in forms]


def _prime(n: int) -> int:
    return next(k for k in range(n, 0, -1) if k < 4 or all(k % d for d in range(2, math.isqrt(k) + 1)))
