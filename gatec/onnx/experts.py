"""`gatec::runtime_experts`: a mixture of experts as one operator, which becomes onnxruntime's own MoE.

    out[t] = sum of weight_p * down_e(f(up_e(x[t]))) over the pairs p of token t, where e is the expert of p

Pairs lie expert by expert, those of e before ends[e]. Those that are not live count nothing, and no weight is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

from gatec.grouped import grouped_linear

DOMAIN = "com.microsoft"
LEAST = -1e30  # the logarithm of no weight: finite, because a token may have no expert at all
# What the operator does to hidden units on a CPU, and to those of a gate and of `up` together.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "identity": lambda x: x,
    "swiglu": lambda gate, x: F.silu(gate) * x,
}


@torch.library.custom_op("gatec::runtime_experts", mutates_args=())
def runtime_experts(x: Tensor, token: Tensor, ends: Tensor, weight: Tensor, live: Tensor | None, up: Sequence[Tensor],
                    bias: Sequence[Tensor], down: Tensor, top_k: int, activation: str) -> Tensor:  # fmt: skip
    """x[tokens, width], weight[pairs, 1], live[pairs, 1], up[experts, hidden, width] and bias[experts, hidden], or that of
    the gate and of up; down[experts, width, hidden]
    """
    rows, expert = x[token], experts_of(token, ends).clamp(max=len(down) - 1)
    inner = [grouped_linear(rows, layer, ends) for layer in up]
    inner = [y + b[expert] for y, b in zip(inner, bias, strict=True)] if bias else inner
    out = grouped_linear(ACTIVATIONS[activation](*inner) * weight, down, ends)
    out = out if live is None else torch.where(live, out, 0.0)
    return torch.zeros_like(x).index_add(0, token, out)


@runtime_experts.register_fake
def _(x: Tensor, token: Tensor, ends: Tensor, weight: Tensor, live: Tensor | None, up: Sequence[Tensor],
      bias: Sequence[Tensor], down: Tensor, top_k: int, activation: str) -> Tensor:  # fmt: skip
    return torch.empty_like(x)


OPERATOR = torch.ops.gatec.runtime_experts.default


def lowered(program: ExportedProgram) -> ExportedProgram:
    """With onnxruntime's operator instead of this one."""
    found: ExportedProgram = program.run_decompositions({OPERATOR: runtime_form})
    return found


def experts_of(token: Tensor, ends: Tensor) -> Tensor:
    """The expert of each pair: the number of experts that end before it."""
    return (ends <= torch.arange(token.shape[0], device=ends.device).unsqueeze(-1)).sum(-1)


def runtime_form(x: Tensor, token: Tensor, ends: Tensor, weight: Tensor, live: Tensor | None, up: Sequence[Tensor],
                 bias: Sequence[Tensor], down: Tensor, top_k: int, activation: str) -> Tensor:  # fmt: skip
    """onnxruntime takes the softmax of scores over all experts: it is given the logarithm of each weight, and what it
    returns is times their sum. Of a gate and `up` it wants the rows in turns.
    """
    expert = experts_of(token, ends).clamp(max=len(down) - 1)
    counted = (weight if live is None else torch.where(live, weight, 0.0)).squeeze(-1)
    dense = x.new_zeros(x.shape[0], down.shape[0]).index_put((token, expert), counted, accumulate=True)
    layers = [torch.stack(list(each), 2).flatten(1, 2) if each else None for each in (up, bias)]
    # Weights sum to one already; without normalizing, the kernel may clear its input, in whose memory it writes its output.
    how: dict[str, Any] = {"k": top_k, "activation_type": activation, "normalize_routing_weights": 1} | (
        {"swiglu_fusion": 1} if len(up) > 1 else {}
    )
    mixed = torch.onnx.ops.symbolic(f"{DOMAIN}::MoE", (x, dense.log().clamp(min=LEAST), *layers, down), how,
                                    dtype=x.dtype, shape=x.shape, version=1)  # fmt: skip
    return mixed * dense.sum(-1, keepdim=True)
