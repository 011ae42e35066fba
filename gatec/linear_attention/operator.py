"""gatec::linear_attention: the operator, its gradients, and the two functions that people call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gatec.errors import GatecError
from gatec.linear_attention.chunks import CHUNK, chunked, stepped

HALVES = (torch.float16, torch.bfloat16)
LIBRARY = torch.library.Library("gatec", "FRAGMENT")
LARGE = 1e30  # products of decays that are still far from what float32 can hold
Maybe = Tensor | None


def linear_attention(q: Tensor, k: Tensor, v: Tensor, decay: Maybe = None, *, erase: Maybe = None, write: Maybe = None,
                     state: Maybe = None, log: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is read of a matrix of state at every step, and the last state.

        S = decay[t] * S
        S = S + outer(k[t], v[t]) - outer(write[t], erase[t] @ S)
        out[t] = q[t] @ S

    q, k, erase, write  (..., steps, K); `erase` and `write` come together
    v                   (..., steps, V)
    decay               (..., steps, K), or (..., steps, 1) where all keys share it; with `log`, its logarithm
    state               (..., K, V), before the first step; zero if left out

    Leading dimensions broadcast. States of half precision are kept in float32, and the last one is returned so.
    """
    given = (q, k, v, decay, erase, write, state)
    if has_torch_function(tuple(x for x in given if x is not None)):
        kept: tuple[Tensor, Tensor] = handle_torch_function(
            linear_attention, tuple(x for x in given if x is not None), q, k, v, decay, erase=erase, write=write,
            state=state, log=log)  # fmt: skip
        return kept
    checked(*given)
    *rolled, state = given
    lead = torch.broadcast_shapes(*(x.shape[:-1] for x in rolled if x is not None))
    if state is not None:
        lead = (*torch.broadcast_shapes(lead[:-1], state.shape[:-2]), lead[-1])
        state = state.expand(*lead[:-1], *state.shape[-2:])
    whole = [None if x is None else x.expand(*lead, x.shape[-1]) for x in rolled]
    out, last = LINEAR_ATTENTION(*whole, state, log)
    return out, last


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Maybe = None, *, state: Maybe = None,
                     log: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each step moves what the decayed state answers to k[t] towards v[t], by beta[t], which is (..., steps)."""
    scaled = beta.unsqueeze(-1) * k
    return linear_attention(q, scaled, v, decay, erase=k, write=scaled, state=state, log=log)


def checked(q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe, state: Maybe) -> None:
    named = {"q": q, "k": k, "v": v, "decay": decay, "erase": erase, "write": write, "state": state}
    there = {n: x for n, x in named.items() if x is not None}
    keys, values = k.shape[-1:], v.shape[-1:]
    fits = all(x.ndim > 1 and x.is_floating_point() for x in there.values()) and (erase is None) == (write is None)
    fits = fits and all(x.shape[-1:] == keys for x in (q, erase, write) if x is not None)
    fits = fits and (decay is None or decay.shape[-1] in (1, *keys))
    fits = fits and (state is None or state.shape[-2:] == (*keys, *values))
    if not fits:
        found = ", ".join(f"{n} {tuple(x.shape)} {x.dtype}" for n, x in there.items())
        wanted = "floating-point q, k, v, decay, erase with write, and state that fit each other"
        raise GatecError(wanted, found=found, where="gatec::linear_attention")


def types(given: tuple[Maybe, ...]) -> tuple[torch.dtype, torch.dtype]:
    """Of what is read, and of the states."""
    *rolled, state = given
    out = rolled[0]
    assert out is not None
    kind = out.dtype
    for x in rolled:
        kind = kind if x is None else torch.promote_types(kind, x.dtype)
    wide = kind if state is None else torch.promote_types(kind, state.dtype)
    return kind, torch.float32 if wide in HALVES else wide


def computed(given: tuple[Maybe, ...], log: bool, plain: bool = True) -> tuple[Tensor, Tensor]:
    """In the states' type, and rounded once; `plain` is that of chunks."""
    kind, wide = types(given)
    q, k, v, decay, erase, write, state = (None if x is None else x.to(wide) for x in given)
    decay = decay.exp() if decay is not None and log else decay
    assert q is not None and k is not None and v is not None
    out, last = (chunked if plain else stepped)(q, k, v, decay, erase, write, state)
    return out.to(kind), last


def bounded(decay: Maybe, log: bool) -> bool:
    """Whether the products of a chunk can be held; only a CPU is asked, a device would have to be waited for."""
    if decay is None or decay.device.type != "cpu" or not decay.numel():
        return True
    most = float(decay.detach().amax().exp() if log else decay.detach().abs().amax())
    return most <= 1 or min(CHUNK, decay.shape[-2]) * math.log(most) < math.log(LARGE)


def forward(q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe, state: Maybe,
            log: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator's body in PyTorch's own operators."""
    out, last = computed((q, k, v, decay, erase, write, state), log, bounded(decay, log))
    return out.contiguous(), last.contiguous()


def meant(q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe, state: Maybe,
          log: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    kind, wide = types((q, k, v, decay, erase, write, state))
    out = v.new_empty(v.shape, dtype=kind)
    return out, v.new_empty(*v.shape[:-2], k.shape[-1], v.shape[-1], dtype=wide)


# -- gradients --------------------------------------------------------------------------------------------------------


def backward(grad: Tensor, last: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe, write: Maybe,
             state: Maybe, log: bool, needs: list[bool]) -> list[Tensor]:  # fmt: skip
    """The gradients that are needed, in order; the chunks are computed again, and nothing of them is kept in between."""
    given = (q, k, v, decay, erase, write, state)
    wanted = [x for x, need in zip(given, needs, strict=True) if need and x is not None]
    plain = bounded(decay, log)

    def again(*some: Tensor) -> tuple[Tensor, Tensor]:
        new = iter(some)
        whole = tuple(next(new) if need and x is not None else x for x, need in zip(given, needs, strict=True))
        return computed(whole, log, plain)

    found: tuple[Tensor, ...] = torch.func.vjp(again, *wanted)[1]((grad, last))
    return [g.contiguous() for g in found]


def meant_backward(grad: Tensor, last: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Maybe, erase: Maybe,
                   write: Maybe, state: Maybe, log: bool, needs: list[bool]) -> list[Tensor]:  # fmt: skip
    given = (q, k, v, decay, erase, write, state)
    return [x.new_empty(x.shape) for x, need in zip(given, needs, strict=True) if need and x is not None]


def saved(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, ctx.log = inputs
    ctx.save_for_backward(*given)


def gradients(ctx: Any, grad: Tensor, last: Tensor) -> tuple[Maybe, ...]:
    given = ctx.saved_tensors
    needs = [x is not None and need for x, need in zip(given, ctx.needs_input_grad, strict=False)]
    found = iter(twice(given, grad, last, needs, ctx.log) if torch.is_grad_enabled()
                 else LINEAR_ATTENTION_BACKWARD(grad, last, *given, ctx.log, needs))  # fmt: skip
    return *(next(found) if need else None for need in needs), None


def twice(given: tuple[Maybe, ...], grad: Tensor, last: Tensor, needs: list[bool], log: bool) -> tuple[Tensor, ...]:
    """Gradients that have gradients again: those of the body, as autograd records it."""
    wanted = [x for x, need in zip(given, needs, strict=True) if need and x is not None]
    out = computed(given, log)
    found: tuple[Tensor, ...] = torch.autograd.grad(out, wanted, (grad, last), create_graph=True)
    return found


OPERANDS = "Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? erase, Tensor? write, Tensor? state, bool log"
LIBRARY.define(f"linear_attention({OPERANDS}) -> (Tensor, Tensor)")
LIBRARY.define(f"linear_attention_backward(Tensor grad, Tensor last, {OPERANDS}, bool[] needs) -> Tensor[]")
LIBRARY.impl("linear_attention", forward, "CompositeExplicitAutograd")
LIBRARY.impl("linear_attention_backward", backward, "CompositeExplicitAutograd")
torch.library.register_fake("gatec::linear_attention", meant)
torch.library.register_fake("gatec::linear_attention_backward", meant_backward)
torch.library.register_autograd("gatec::linear_attention", gradients, setup_context=saved)
LINEAR_ATTENTION = torch.ops.gatec.linear_attention.default
LINEAR_ATTENTION_BACKWARD = torch.ops.gatec.linear_attention_backward.default
