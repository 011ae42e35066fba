"""How an op takes part in differentiation: by another op, and by its eager form wherever that cannot follow.

torch.func, forward-mode derivatives and vmap see the eager form; so does a gradient of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Pull = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Sequence[Tensor | None]]


def differentiable(
    library: torch.library.Library, op: Any, eager: Callable[..., Any], pull: Pull, unless: Callable[..., bool] | None = None
) -> None:  # fmt: skip
    """Register `pull(operands, grads)` as the gradient of `op`, and `eager` for what knows no autograd functions.

    With gradients, `eager` runs in its place on operands for which `unless` says so.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            ctx.save_for_backward(*tensors)
            found = below(*tensors)
            return tuple(found) if isinstance(found, list) else found

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return tuple(pull(ctx.saved_tensors, grads))  # a checkpoint hands them over once

    def below(*tensors: Tensor) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*tensors)

    def autograd(*tensors: Tensor) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return eager(*tensors)
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            return below(*tensors)
        if unless is not None and unless(*tensors):
            return eager(*tensors)
        found = Gradient.apply(*tensors)  # type: ignore[no-untyped-call]
        return list(found) if isinstance(found, tuple) else found

    library.impl(op, autograd, "Autograd")
    for batched in ("FuncTorchBatched", "Batched"):
        library.impl(op, eager, batched)


def by(back: Any) -> Pull:
    """The gradient that `back(grad, *operands)` computes: one for each float operand."""

    def pull(operands: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
        found = iter(back(*grads, *operands))
        return [next(found) if x.is_floating_point() else None for x in operands]

    return pull


def through(eager: Callable[..., Any]) -> Pull:
    """The gradient that torch finds for an eager function; it can be differentiated again."""

    def pull(operands: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that what one operand owes to another is not counted here.
            own = [x.view_as(x) if again and x.requires_grad else x.detach() for x in operands]
            floats = [x.requires_grad_() if x.is_leaf else x for x in own if x.is_floating_point()]
            out = eager(*own)
            pairs = [(o, g) for o, g in zip([out] if isinstance(out, Tensor) else out, grads, strict=True)
                     if o.requires_grad]  # fmt: skip
            outs, given = zip(*pairs, strict=True) if pairs else ((), ())
            found = iter(
                torch.autograd.grad(outs, floats, given, create_graph=again, allow_unused=True) if outs else ()
            )
        return [next(found, None) if x.is_floating_point() else None for x in operands]

    return pull
