"""The gradients that a region had before it became an op: those of autograd, through whatever its forward keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Differentiated:
    """`(grad, *operands)` to the gradient of every float operand; `prepared` leaves the forward out of what is timed."""

    eager: Callable[..., Tensor]

    def __call__(self, grad: Tensor, *operands: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.prepared(grad, *operands)()
        return found

    def prepared(self, grad: Tensor, *operands: Tensor) -> Callable[[], Any]:
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in operands]
        with torch.enable_grad():
            out = self.eager(*leaves)
        floats = [x for x in leaves if x.requires_grad]
        return lambda: list(torch.autograd.grad(out, floats, grad, retain_graph=True, materialize_grads=True))


@dataclass(frozen=True)
class WithGradient:
    """Operands of a backward, from those of its forward."""

    eager: Callable[..., Tensor]

    def __call__(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            out = self.eager(*operands)
        return torch.randn_like(out), *operands
