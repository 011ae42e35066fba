"""A forward in float64 throughout, so that rounding is told from change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NARROW = (torch.float32, torch.float16, torch.bfloat16)
aten = torch.ops.aten
MAKING = {aten.lift_fresh.default, aten.scalar_tensor.default, aten._to_copy.default, aten.full.default}
CONTRACTING = {  # they take numbers of one kind, of which a forward may have made some itself
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.mv.default, aten.dot.default,
    aten.convolution.default,
}  # fmt: skip


class Exact(TorchDispatchMode):
    """Lets what is float64 stay so where a forward asks for less."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in NARROW and args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            kwargs = {**kwargs, "dtype": torch.float64}
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float64:
            return grouped(*args, **kwargs)
        if func in CONTRACTING and {torch.float64} < {t.dtype for t in args if isinstance(t, Tensor)}:
            args = [t.double() if isinstance(t, Tensor) else t for t in args]
        out = func(*args, **kwargs)
        if func is aten.div.Tensor and not any(isinstance(t, Tensor) and t.is_floating_point() for t in args):
            return out.double()  # of whole numbers, such as the bytes of an image
        return out.double() if func in MAKING and _number(out) else out


def _number(value: Tensor) -> bool:
    """A single number that a forward makes, such as a width: what comes of it is not to be rounded either."""
    return value.dim() == 0 and value.dtype in NARROW


def grouped(a: Tensor, b: Tensor, ends: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Rows, sorted by their matrix, times their matrices; the operator itself has no float64."""
    if ends is None:
        return torch.bmm(a, b)
    bounds = [0, *ends.tolist()]
    return torch.cat([a[i:j] @ m for i, j, m in zip(bounds, bounds[1:], b, strict=False)])


def exactly() -> Exact:
    return Exact()  # type: ignore[no-untyped-call]


@contextmanager
def same_draws() -> Iterator[None]:
    """Inside, a forward that draws numbers draws the same ones every time; outside, the generator is as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
