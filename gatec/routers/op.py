"""The op of a router: the weights of each row's choices and which they are, with a backward for the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.derive import derive
from gatec.dispatch import CHOOSER, Run, Side
from gatec.keeping import DEVICE, LIBRARY, best, dense, under_autograd
from gatec.kernel import Kernel
from gatec.kernels import router
from gatec.making import MAKERS, Made, origin
from gatec.onnx import register_decomposition
from gatec.routers.region import Routing

CALM = 8.0


@dataclass(frozen=True, eq=False)
class Eager:
    """A router in torch's own operations; `weights` are those of a choice that was made before."""

    score: Run
    choices: int
    normalised: bool
    eps: float
    factor: float
    groups: router.Groups | None
    dtype: torch.dtype

    def __call__(self, logits: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.topk(self.key(logits, *bias), self.choices, -1).indices
        return self.weights(logits, chosen), chosen

    def key(self, logits: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the choice is made by."""
        scores: Tensor = self.score(logits)
        key: Tensor = scores if bias is None else scores + bias
        if self.groups is None:
            return key
        columns = key.unflatten(-1, (self.groups.count, -1))
        worth = columns.topk(self.groups.best, -1).values.sum(-1)
        closed = torch.ones_like(worth, dtype=torch.bool)
        closed = closed.scatter(-1, worth.topk(self.groups.kept, -1).indices, False)
        open_only: Tensor = columns.masked_fill(closed.unsqueeze(-1), self.groups.fill).flatten(-2)
        return open_only

    def weights(self, logits: Tensor, chosen: Tensor) -> Tensor:
        weights = self.score(logits).gather(-1, chosen)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + self.eps)
        weights = weights * self.factor
        found: Tensor = weights if logits.dtype == torch.float64 else weights.to(self.dtype)
        return found

    def pull(self, grad: Tensor, chosen: Tensor, logits: Tensor, *, again: bool = False) -> Tensor:
        with torch.enable_grad():
            leaf = logits if again else logits.detach().requires_grad_()
            weights = self.weights(leaf, chosen)
        (found,) = torch.autograd.grad(weights, leaf, grad.to(weights.dtype), create_graph=again)
        return found


@dataclass(frozen=True)
class Router(Made):
    """`pull(grad, chosen, logits)` and each way of `backward` give the gradient of the logits."""

    eager: Eager


def made(region: Routing) -> Router:
    score, logits = region.score(), region.examples[0]
    derived = derive(score, [logits.reshape(-1, region.columns)], rows=True)
    out = region.results[0].meta["val"].dtype
    kernel = router.render(
        region.name, origin(region), derived.forward, derived.backward, out=out, biased=region.biased, **region.options
    )
    eager = Eager(score, dtype=out, **region.options)
    names = ("logits", "bias")[: 1 + region.biased]
    ways = {"kernel": partial(_chosen, kernel)}, {"kernel": partial(_backward, kernel, region.biased)}
    return Router(kernel, names, eager.pull, *ways, eager)


MAKERS["router"] = made  # type: ignore[assignment]


def _chosen(kernel: Kernel, *operands: Tensor) -> Any:
    return kernel.load().chosen(*operands)


def _backward(kernel: Kernel, biased: bool, grad: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
    bias = [logits.new_empty(0)] if biased else []  # the choice is made already
    found: Tensor = kernel.load().backward(grad, logits, *bias, saved=chosen)[0]
    return found


# -- the choice of a way ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A way, with what it chose in place of the columns' numbers: equal scores may be chosen in any order.

    Among groups of equal worth any may be taken, and then the weights differ: there logits are at most `CALM`, where
    no score is rounded to one or zero.
    """

    way: Run
    eager: Eager

    def __call__(self, logits: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.eager.groups is not None and logits.numel():
            logits = logits * (CALM / logits.abs().amax().clamp_min(CALM))
        weights, chosen = self.way(logits, *bias)
        best, order = self.eager.key(logits, *bias).gather(-1, chosen).sort(stable=True, dim=-1, descending=True)
        return weights.gather(-1, order), best


@dataclass(frozen=True)
class FromLogits:
    """A backward of `(grad, *operands)`: the choice is made first, which is not part of what is timed."""

    choose: Run
    way: Run

    def __call__(self, grad: Tensor, *operands: Tensor) -> Tensor:
        found: Tensor = self.prepared(grad, *operands)()
        return found

    def prepared(self, grad: Tensor, *operands: Tensor) -> Callable[[], Any]:
        with torch.no_grad():
            chosen = self.choose(*operands)[1]
        return lambda: self.way(grad, chosen, operands[0])


@dataclass(frozen=True)
class Native:
    """What autograd does behind the graph's own nodes; their forward is not part of what is timed."""

    eager: Run

    def __call__(self, grad: Tensor, *operands: Tensor) -> Tensor:
        found: Tensor = self.prepared(grad, *operands)()
        return found

    def prepared(self, grad: Tensor, *operands: Tensor) -> Callable[[], Any]:
        leaf = operands[0].detach().requires_grad_()
        with torch.enable_grad():
            weights = self.eager(leaf, *operands[1:])[0]
        return lambda: torch.autograd.grad(weights, leaf, grad, retain_graph=True)[0]


@dataclass(frozen=True)
class WithGradient:
    """Operands of a backward, from those of its forward."""

    choose: Run

    def __call__(self, operands: Any) -> Any:
        with torch.no_grad():
            return torch.randn_like(self.choose(*operands)[0]), *operands


def sides(name: str, made: Router, eager: Run) -> tuple[Side, Side]:
    own = made.eager
    forward = {n: Compared(way, own) for n, way in made.forward.items()}
    backward = {n: FromLogits(own, way) for n, way in made.backward.items()}
    pull = FromLogits(own, made.pull)
    return (
        Side(name, "forward", forward, Compared(eager, own), Compared(own, own)),
        Side(name, "backward", backward, Native(eager), pull, WithGradient(own)),
    )


# -- the op -----------------------------------------------------------------------------------------------------------


def op_routing(name: str, made: Router, eager: Run) -> Any:
    """torch.ops.gatec.NAME(logits[, bias]) -> (weights, chosen)."""
    operands = ", ".join(f"Tensor {n}" for n in made.operands)
    LIBRARY.define(f"{name}({operands}) -> (Tensor, Tensor)")
    LIBRARY.define(f"{name}_backward(Tensor grad, Tensor chosen, {operands}) -> Tensor")
    forward, backward = sides(name, made, eager)
    pull: Run = lambda grad, chosen, logits, *bias: made.pull(grad, chosen, logits).contiguous()  # noqa: E731
    LIBRARY.impl(name, dense(eager), "CompositeExplicitAutograd")
    LIBRARY.impl(name, dense(lambda *tensors: best(forward, tensors).way(*tensors)), DEVICE)
    LIBRARY.impl(f"{name}_backward", pull, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", _pulled(backward, pull), DEVICE)
    op, back = (getattr(torch.ops.gatec, f"{name}{s}").default for s in ("", "_backward"))
    torch.library.register_fake(op, partial(_blank, made.eager))
    torch.library.register_fake(back, lambda grad, chosen, logits, *bias: logits.new_empty(logits.shape))
    LIBRARY.impl(name, _differentiable(op, back, made, backward, eager), "Autograd")
    for batched in ("FuncTorchBatched", "Batched"):
        LIBRARY.impl(name, eager, batched)
        LIBRARY.impl(f"{name}_backward", pull, batched)
    register_decomposition(op, eager)
    return op


def _blank(eager: Eager, logits: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*logits.shape[:-1], eager.choices)
    return logits.new_empty(shape, dtype=eager.dtype), logits.new_empty(shape, dtype=torch.int64)


def _pulled(side: Side, pull: Run) -> Run:
    def run(grad: Tensor, chosen: Tensor, logits: Tensor, *bias: Tensor) -> Any:
        found: Any = CHOOSER.way(side, (logits, *bias))
        return found.way(grad, chosen, logits).contiguous() if found else pull(grad, chosen, logits)

    return run


def _differentiable(op: Any, back: Any, made: Router, side: Side, eager: Run) -> Run:
    """What the op does under autograd."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                weights, chosen = op(*tensors)
            ctx.save_for_backward(chosen, *tensors)
            ctx.mark_non_differentiable(chosen)
            return weights, chosen

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
            chosen, logits, *bias = ctx.saved_tensors  # a checkpoint hands them over once
            if torch.is_grad_enabled():
                found = made.eager.pull(grad, chosen, logits, again=True)
            else:
                found = back(grad, chosen, logits, *bias)
            return (found, *(None for _ in bias))

    return under_autograd(op, Gradient, side, eager, of=slice(1))  # the bias moves the choice only
