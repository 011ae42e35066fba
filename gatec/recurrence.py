"""The linear recurrence h[t] = a[t] * h[t-1] + b[t] along one dimension, all states at once: `gatec::scan`.

On a CPU time is cut into groups of steps. Every group is reduced to one step (the product of its decays, and its state
from zero), those steps are a shorter recurrence of the same form, and its states start the groups. Nothing is ever
divided by a decay, so gates that close (a = 0) are exact. The gradient is the same recurrence running backwards.
"""

from __future__ import annotations

import cmath
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gatec.errors import GatecError

GROUP = 8  # steps that are reduced to one
BLOCK = 2**20  # elements that are worked on at a time, so that they stay in the cache
LANES = 2**11  # as many are a step that no grouping makes faster
NUMBERS = (int, float, complex)
HALVES = (torch.float16, torch.bfloat16)
LIBRARY = torch.library.Library("gatec", "FRAGMENT")


def linear_recurrence(
    a: Tensor | float, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> Tensor:
    """All states h[t] = a[t] * h[t-1] + b[t] along `dim`; the last one is the final state.

    a, b     broadcast against each other; `a` may be one number, or one per channel
    h0       the state before the first step, without `dim`; zero if left out
    reverse  from the last step to the first: h[t] = a[t] * h[t+1] + b[t]

    States of half precision are kept in float32 from step to step, and rounded once.
    """
    given = tuple(x for x in (a, b, h0) if x is not None and not isinstance(x, NUMBERS))
    if has_torch_function(given):
        kept: Tensor = handle_torch_function(linear_recurrence, given, a, b, h0, dim=dim, reverse=reverse)
        return kept
    a = torch.as_tensor(a, dtype=b.dtype, device=b.device) if isinstance(a, NUMBERS) else a
    if torch._C._are_functorch_transforms_active():
        return stepwise(a, b, h0, dim, reverse)
    out: Tensor = SCAN(a, b, h0, dim, reverse)
    return out


def form(a: Tensor, b: Tensor, h0: Tensor | None, dim: int) -> tuple[torch.Size, int, torch.dtype]:
    """The states' shape, the dimension counted from the front, and the states' type."""
    rank = max(a.ndim, b.ndim)
    if not -rank <= dim < rank:
        raise GatecError(f"a dimension of a recurrence over {rank} dimensions", found=str(dim), where="gatec::scan")
    along = dim % rank
    steps = [x.shape[along - rank + x.ndim] for x in (a, b) if x.ndim > rank - along - 1]
    shapes = [a.shape, b.shape]
    if h0 is not None:
        whole = (*(1,) * (rank - 1 - h0.ndim), *h0.shape)
        shapes.append(torch.Size((*whole[:along], 1, *whole[along:])))
    full = torch.broadcast_shapes(*shapes)
    dtype = torch.result_type(a, b) if h0 is None else torch.promote_types(torch.result_type(a, b), h0.dtype)
    if len(full) != rank or not (dtype.is_floating_point or dtype.is_complex) or not steps:
        found = f"a {tuple(a.shape)}, b {tuple(b.shape)}" + (f", h0 {tuple(h0.shape)}" if h0 is not None else "")
        raise GatecError("floating-point a, b and h0 that broadcast", found=f"{found} in {dtype}", where="gatec::scan")
    return full, along, dtype


def room(b: Tensor, full: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory for the states, laid out as `b` is where it has their shape."""
    return torch.empty_like(b, dtype=dtype) if b.shape == full else b.new_empty(full, dtype=dtype)


def states(a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The operator's body in PyTorch's own operators."""
    full, dim, dtype = form(a, b, h0, dim)
    out = room(b, full, dtype)
    if not out.numel():
        return out
    wide = torch.float32 if dtype in HALVES else dtype
    over = a.shape[dim - len(full) + a.ndim] if a.ndim > len(full) - dim - 1 else 1
    a = a.reshape((1,) * (len(full) - a.ndim) + a.shape).to(wide)
    a = a.expand(*a.shape[:dim], full[dim], *a.shape[dim + 1 :]) if over == 1 else a
    h0 = None if h0 is None else h0.to(wide).expand(*full[:dim], *full[dim + 1 :])
    result = out if wide == dtype else torch.empty_like(out, dtype=wide)
    sweep(a.movedim(dim, 0), b.to(wide).expand(full).movedim(dim, 0), h0, result.movedim(dim, 0), reverse)
    return out if result is out else out.copy_(result)


def sweep(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Write all states to `out`; time is the first dimension. Pieces of it follow each other, so that each stays in the cache."""
    steps = len(b)
    lanes, here = out.numel() // steps, b.device.type == "cpu"
    if steps < 4 * GROUP or (here and lanes >= LANES):
        walk(a, b, h0, out, reverse)
        return
    size = max(BLOCK // lanes // GROUP, 2) * GROUP if here else steps
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        whole = stop - (stop - start) % GROUP
        for method, first, last in ((groups, start, whole), (walk, whole, stop)):
            if first < last:
                span = slice(steps - last, steps - first) if reverse else slice(first, last)
                method(a[span], b[span], h0, out[span], reverse)
                h0 = out[span.start if reverse else span.stop - 1]


def groups(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Reduce, recur, apply; step by step where decays grow beyond what their products can hold."""
    count = len(b) // GROUP
    order = slice(None, None, -1) if reverse else slice(None)
    decay, new, state = (x.unflatten(0, (count, GROUP)).unbind(1)[order] for x in (a, b, out))
    product, local = decay[0] * decay[1], torch.addcmul(new[1], decay[1], new[0])
    for t in range(2, GROUP):
        product.mul_(decay[t])
        torch.addcmul(new[t], decay[t], local, out=local)
    if b.device.type == "cpu" and not cmath.isfinite(product.sum().item()):
        walk(a, b, h0, out, reverse)
        return
    sweep(product, local, h0, state[-1], reverse)
    edge = slice(-1, None) if reverse else slice(0, 1)
    walk(decay[0][edge], new[0][edge], h0, state[0][edge], reverse)
    if count > 1:
        here, before = (slice(None, -1), slice(1, None)) if reverse else (slice(1, None), slice(None, -1))
        torch.addcmul(new[0][here], decay[0][here], state[-1][before], out=state[0][here])
    for t in range(1, GROUP - 1):
        torch.addcmul(new[t], decay[t], state[t - 1], out=state[t])


def walk(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> None:
    """Step by step."""
    order = slice(None, None, -1) if reverse else slice(None)
    before = h0
    for decay, new, state in zip(a.unbind(0)[order], b.unbind(0)[order], out.unbind(0)[order], strict=True):
        if before is None:
            state.copy_(new)
        else:
            torch.addcmul(new, decay, before, out=state)
        before = state


def stepwise(a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The loop itself, which torch.func can transform: it changes nothing in place."""
    full, dim, dtype = form(a, b, h0, dim)
    wide = torch.float32 if dtype in HALVES else dtype
    order = range(full[dim])[:: -1 if reverse else 1]
    decays, new = (x.to(wide).expand(full).unbind(dim) for x in (a, b))
    found, state = [], None if h0 is None else h0.to(wide)
    for t in order:
        state = new[t] if state is None else decays[t] * state + new[t]
        found.append(state)
    return torch.stack(found[:: -1 if reverse else 1], dim).to(dtype) if found else b.new_empty(full, dtype=dtype)


# -- the operator -----------------------------------------------------------------------------------------------------


def meant(a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    full, _, dtype = form(a, b, h0, dim)
    return room(b, full, dtype)


def saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, h0, ctx.dim, ctx.reverse = inputs
    ctx.b, ctx.types = b.shape, (a.dtype, b.dtype, None if h0 is None else h0.dtype)
    ctx.save_for_backward(a, h0, output)


def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
    """dh[t] = grad[t] + a[t+1] dh[t+1]; da[t] = dh[t] h[t-1]; db = dh. Made of operators that have gradients again."""
    a, h0, h = ctx.saved_tensors
    dim, reverse = ctx.dim % h.ndim, ctx.reverse
    dh = adjoint(a, grad, dim, reverse)
    da = dh0 = None
    if ctx.needs_input_grad[0]:
        da = (dh * earlier(h, h0, dim, reverse).conj()).sum_to_size(a.shape).to(ctx.types[0])
    if h0 is not None and ctx.needs_input_grad[2]:
        dh0 = of_first(a, dh, h0, dim, reverse).to(ctx.types[2])
    return da, dh.sum_to_size(ctx.b).to(ctx.types[1]), dh0, None, None


def adjoint(a: Tensor, grad: Tensor, dim: int, reverse: bool) -> Tensor:
    """The gradient of every state, with what later states owe to it."""
    along = dim - grad.ndim + a.ndim  # where a has the dimension of time, if it does
    moves = along >= 0 and a.shape[along] > 1
    # What a roll brings from the other end is never read: before its first step a recurrence is zero.
    later = a.roll(1 if reverse else -1, along) if moves else a
    found: Tensor = SCAN(later.conj(), grad, None, dim, not reverse)
    return found


def of_first(a: Tensor, dh: Tensor, h0: Tensor, dim: int, reverse: bool) -> Tensor:
    """The gradient of the state before the first step."""
    along, steps = dim - dh.ndim + a.ndim, dh.shape[dim]
    if not steps:
        return torch.zeros_like(h0)
    first = steps - 1 if reverse else 0
    decay = a.select(along, first if a.shape[along] > 1 else 0) if along >= 0 else a
    return (decay.conj() * dh.select(dim, first)).sum_to_size(h0.shape)


def earlier(h: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The state before each step."""
    steps = h.shape[dim]
    if not steps:
        return h
    edge = h.narrow(dim, 0, 1)
    first = torch.zeros_like(edge) if h0 is None else h0.to(h.dtype).expand_as(edge.squeeze(dim)).unsqueeze(dim)
    rest = h.narrow(dim, 1 if reverse else 0, steps - 1)
    return torch.cat([rest, first] if reverse else [first, rest], dim)


LIBRARY.define("scan(Tensor a, Tensor b, Tensor? h0, int dim, bool reverse) -> Tensor")
LIBRARY.impl("scan", states, "CompositeExplicitAutograd")
torch.library.register_fake("gatec::scan", meant)
torch.library.register_autograd("gatec::scan", gradients, setup_context=saved)
SCAN = torch.ops.gatec.scan.default
