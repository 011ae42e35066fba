"""Ops that keep values for their backward: the same function, computed with or without them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gatec.autograd import through
from gatec.dispatch import CHOOSER, Run, Side
from gatec.making import Made
from gatec.onnx import register_decomposition

LIBRARY = torch.library.Library("gatec", "FRAGMENT")


@dataclass(frozen=True)
class Keeping(Made):
    """`keep(*operands)` gives the result and what backward needs, as does each way of `keeping`; `room` the memory for that.

    `pull(grad, kept, *operands, needs=...)` gives the gradients that are needed, in order.
    """

    room: Run
    keep: Run
    keeping: Mapping[str, Run]


def op_keeping(name: str, made: Keeping, eager: Callable[..., Tensor]) -> Any:
    """torch.ops.gatec.NAME: as it is without gradients; with them, the op beside it that keeps, and their backward."""
    operands = ", ".join(f"Tensor {n}" for n in made.operands)
    LIBRARY.define(f"{name}({operands}) -> Tensor")
    LIBRARY.define(f"{name}_keeping({operands}) -> (Tensor, Tensor)")
    LIBRARY.define(f"{name}_backward(Tensor grad, Tensor kept, {operands}, bool[] needs) -> Tensor[]")
    for suffix, body, ways in (("", eager, made.forward), ("_keeping", made.keep, made.keeping)):
        LIBRARY.impl(f"{name}{suffix}", _dense(body), "CompositeExplicitAutograd")
        LIBRARY.impl(
            f"{name}{suffix}", _dense(_dispatched(Side(name, suffix[1:] or "forward", ways, body, body))), "CUDA"
        )
    LIBRARY.impl(f"{name}_backward", _pulled(made.pull), "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", _chosen(name, made), "CUDA")
    op, keep, back = (getattr(torch.ops.gatec, f"{name}{s}").default for s in ("", "_keeping", "_backward"))
    torch.library.register_fake(op, _dense(eager))
    torch.library.register_fake(keep, lambda *xs: (eager(*xs).contiguous(), made.room(*xs)))
    torch.library.register_fake(back, _blank)
    LIBRARY.impl(name, _differentiable(op, keep, back, eager), "Autograd")
    for batched in ("FuncTorchBatched", "Batched"):
        LIBRARY.impl(name, eager, batched)
        LIBRARY.impl(f"{name}_backward", lambda *xs: made.pull(*xs[:-1], needs=xs[-1]), batched)
    register_decomposition(op, eager)
    register_decomposition(keep, made.keep)
    return op


def _differentiable(op: Any, keep: Any, back: Any, eager: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What the op does under autograd; whatever cannot be differentiated by its own backward sees the eager form."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                out, kept = keep(*tensors)
            ctx.save_for_backward(kept, *tensors)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            kept, *operands = ctx.saved_tensors  # a checkpoint hands them over once
            if torch.is_grad_enabled():
                return tuple(through(eager)(tuple(operands), (grad,)))
            needs = list(ctx.needs_input_grad)
            found = iter(back(grad, kept, *operands, needs))
            return tuple(next(found) if needed else None for needed in needs)

    def run(*tensors: Tensor) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return eager(*tensors)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return Gradient.apply(*tensors)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*tensors)

    return run


def _dense(body: Run) -> Run:
    """`body`, its results without gaps: the same on every device and in a trace."""

    def run(*tensors: Tensor) -> Any:
        found = body(*tensors)
        return found.contiguous() if isinstance(found, Tensor) else tuple(x.contiguous() for x in found)

    return run


def _dispatched(side: Side) -> Run:
    return lambda *tensors: (CHOOSER.way(side, tensors) or side.eager)(*tensors)


def _chosen(region: str, made: Keeping) -> Run:
    """Backward by what was chosen for these operands and these needs."""

    @functools.cache
    def side(needs: tuple[bool, ...]) -> Side:
        ways = {name: partial(way, needs=needs) for name, way in made.backward.items()}
        eager = partial(made.pull, needs=needs)
        return Side(region, "backward" + "".join(str(int(n)) for n in needs), ways, eager, eager)

    def run(grad: Tensor, kept: Tensor, *rest: Any) -> list[Tensor]:
        tensors, chosen = (grad, kept, *rest[:-1]), side(tuple(rest[-1]))
        return _laid((CHOOSER.way(chosen, tensors) or chosen.eager)(*tensors), rest)

    return run


def _pulled(pull: Run) -> Run:
    return lambda grad, kept, *rest: _laid(pull(grad, kept, *rest[:-1], needs=rest[-1]), rest)


def _wanted(rest: Sequence[Any]) -> list[Tensor]:
    """The operands whose gradients are needed."""
    return [x for x, needed in zip(rest[:-1], rest[-1], strict=True) if needed]


def _laid(grads: Sequence[Tensor], rest: Sequence[Any]) -> list[Tensor]:
    """Each gradient in the layout of its operand."""
    return [g if g.stride() == torch.empty_like(x, device="meta").stride() else torch.empty_like(x).copy_(g)
            for g, x in zip(grads, _wanted(rest), strict=True)]  # fmt: skip


def _blank(grad: Tensor, kept: Tensor, *rest: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in _wanted(rest)]
