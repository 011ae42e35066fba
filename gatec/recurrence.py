"""The linear recurrence h[t] = a[t] * h[t-1] + b[t] along one dimension, all states at once: `gatec::scan`.

Its gradient is the same recurrence running backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gatec.errors import GatecError
from gatec.sweep import sweep

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
    full, dim, dtype = (b.shape, dim, b.dtype) if plain(a, b, h0, dim) else form(a, b, h0, dim)
    out = room(b, full, dtype)
    if not out.numel():
        return out
    wide = torch.float32 if dtype in HALVES else dtype
    result = out if wide == dtype else torch.empty_like(out, dtype=wide)
    decay = timed(a, (*(1,) * (len(full) - a.ndim), *a.shape), full[dim], dim, wide)
    new = timed(b, full, full[dim], dim, wide)
    if h0 is not None:
        h0 = h0.to(wide).expand(full[:dim] + full[dim + 1 :])
    sweep(decay, new, h0, result.movedim(dim, 0) if dim else result, reverse)
    return out if result is out else out.copy_(result)


def plain(a: Tensor, b: Tensor, h0: Tensor | None, dim: int) -> bool:
    """Whether nothing broadcasts and nothing changes its type, as in most recurrences; to know is quicker than to find out how."""
    full = b.shape
    if a.shape != full or a.dtype != b.dtype or not b.dtype.is_floating_point or not 0 <= dim < len(full):
        return False
    return h0 is None or (h0.dtype == b.dtype and h0.shape == full[:dim] + full[dim + 1 :])


def timed(x: Tensor, shape: Sequence[int], steps: int, dim: int, dtype: torch.dtype) -> Tensor:
    """`x` of a `shape` that has all dimensions, with all steps, as its first dimension."""
    x = x.to(dtype).resolve_conj()
    if shape[dim] != steps or x.shape != shape:
        x = x.expand((*shape[:dim], steps, *shape[dim + 1 :]))
    return x.movedim(dim, 0) if dim else x


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
