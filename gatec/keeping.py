"""Ops that keep values for their backward: the same function, computed with or without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gatec.autograd import through
from gatec.dispatch import CHOOSER, Run, Side
from gatec.dispatch.native import Differentiated, WithGradient
from gatec.making import Made
from gatec.onnx import register_decomposition

LIBRARY = torch.library.Library("gatec", "FRAGMENT")
DEVICE = "CUDA"  # the dispatch key under which ways are chosen


@dataclass(frozen=True)
class Keeping(Made):
    """`keep(*operands)` gives the result and what backward needs, as does each way of `keeping`; `room` the memory for that.

    `pull(grad, kept, *operands, needs=...)` gives the gradients that are needed, in order. `exact` computes in
    float64 too, and `blank` gives the form of the result, where the region's own nodes cannot. Without ways
    of keeping, the result itself is what backward needs.
    """

    room: Run
    keep: Run
    keeping: Mapping[str, Run]
    exact: Run | None = None
    blank: Run | None = None


@dataclass(frozen=True)
class FromOperands:
    """A backward of `(grad, *operands)`: what forward keeps is made first, which is not part of what is timed."""

    keep: Run
    way: Run

    def __call__(self, grad: Tensor, *operands: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.prepared(grad, *operands)()
        return found

    def prepared(self, grad: Tensor, *operands: Tensor) -> Callable[[], Any]:
        own = [x.detach() for x in operands]
        kept, needs = self.keep(*own)[1], [x.is_floating_point() for x in own]
        return lambda: list(self.way(grad, kept, *own, needs=needs))


@dataclass(frozen=True)
class Itself:
    """What is kept is the result."""

    run: Run

    def __call__(self, *operands: Tensor) -> tuple[Tensor, Tensor]:
        out: Tensor = self.run(*operands)
        return out, out


def sides(name: str, made: Keeping, eager: Run) -> tuple[Side, ...]:
    """What is chosen among: without gradients, with them, and backward against autograd's own through the nodes."""
    backward = {n: FromOperands(made.keep, way) for n, way in made.backward.items()}
    keeping = (Side(name, "keeping", made.keeping, made.keep, made.keep),) if made.keeping else ()
    pull = FromOperands(made.keep, made.pull)
    return (
        Side(name, "forward", made.forward, eager, made.exact or eager),
        *keeping,
        Side(name, "backward", backward, Differentiated(eager), pull, WithGradient(eager)),
    )


def op_keeping(name: str, made: Keeping, eager: Callable[..., Tensor]) -> Any:
    """torch.ops.gatec.NAME: as it is without gradients; with them, the op beside it that keeps, and their backward."""
    operands = ", ".join(f"Tensor {n}" for n in made.operands)
    forward, *keeping, backward = sides(name, made, eager)
    LIBRARY.define(f"{name}({operands}) -> Tensor")
    LIBRARY.define(f"{name}_backward(Tensor grad, Tensor kept, {operands}, bool[] needs) -> Tensor[]")
    _dispatched(name, forward)
    LIBRARY.impl(f"{name}_backward", _pulled(made.pull), "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", _chosen(backward, made.pull), DEVICE)
    op, back = (getattr(torch.ops.gatec, f"{name}{s}").default for s in ("", "_backward"))
    torch.library.register_fake(op, made.blank or dense(eager))
    torch.library.register_fake(back, _blank)
    keep = _op_beside(f"{name}_keeping", operands, keeping[0], made, eager) if keeping else Itself(op)
    LIBRARY.impl(name, _differentiable(op, keep, back, backward, eager), "Autograd")
    for batched in ("FuncTorchBatched", "Batched"):
        LIBRARY.impl(name, eager, batched)
        LIBRARY.impl(f"{name}_backward", lambda *xs: made.pull(*xs[:-1], needs=xs[-1]), batched)
    register_decomposition(op, eager)
    return op


def _op_beside(name: str, operands: str, side: Side, made: Keeping, eager: Run) -> Any:
    """The op that computes the same, and what backward needs."""
    LIBRARY.define(f"{name}({operands}) -> (Tensor, Tensor)")
    _dispatched(name, side)
    keep = getattr(torch.ops.gatec, name).default
    blank = made.blank or dense(eager)
    torch.library.register_fake(keep, lambda *xs: (blank(*xs), made.room(*xs)))
    register_decomposition(keep, made.keep)
    return keep


def _dispatched(name: str, side: Side) -> None:
    """Bodies of an op: eager, and on a device the way that is chosen there."""
    LIBRARY.impl(name, dense(side.eager), "CompositeExplicitAutograd")
    LIBRARY.impl(name, dense(lambda *tensors: best(side, tensors)(*tensors)), DEVICE)


def _differentiable(op: Any, keep: Any, back: Any, side: Side, eager: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What the op does under autograd; whatever cannot be differentiated by its own backward sees the eager form.

    So does a model that trains where autograd's own backward is faster, or nothing else is known.
    """

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

    return under_autograd(op, Gradient, side, eager)


def under_autograd(op: Any, gradient: Any, side: Side, eager: Run, of: slice = slice(None)) -> Run:
    """The op with `gradient` where one of these operands needs it; torch.func and forward derivatives see the eager form."""

    def run(*tensors: Tensor) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return eager(*tensors)
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors[of])):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*tensors)
        return eager(*tensors) if slower(side, tensors) else gradient.apply(*tensors)

    return run


def slower(side: Side, tensors: Sequence[Tensor]) -> bool:
    """Whether no way of the backward is known to be faster; a compiler that looks on gets the op."""
    traced = torch.compiler.is_compiling() or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
    return not traced and tensors[0].device.type == DEVICE.lower() and CHOOSER.way(side, tensors) is None


def dense(body: Run) -> Run:
    """`body`, its results without gaps: the same on every device and in a trace."""

    def run(*tensors: Tensor) -> Any:
        found = body(*tensors)
        return found.contiguous() if isinstance(found, Tensor) else tuple(x.contiguous() for x in found)

    return run


def best(side: Side, tensors: Sequence[Tensor]) -> Any:
    """What is chosen for these operands, which is eager where nothing is known to be faster."""
    return CHOOSER.way(side, tensors) or side.eager


def _chosen(side: Side, pull: Run) -> Run:
    def run(grad: Tensor, kept: Tensor, *rest: Any) -> list[Tensor]:
        found: Any = CHOOSER.way(side, rest[:-1])
        way = pull if found is None else found.way
        return _laid(way(grad, kept, *rest[:-1], needs=rest[-1]), rest)

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
