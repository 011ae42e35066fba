"""Gates as published, for tests of the kernel generator: a name, a function and operand shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Region:
    name: str
    fn: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


def swiglu(gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(gate) * value


def geglu(gate: Tensor, value: Tensor) -> Tensor:
    return F.gelu(gate) * value


def geglu_tanh(gate: Tensor, value: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * value


def gpt_oss(gate: Tensor, value: Tensor) -> Tensor:
    gate = gate.clamp(max=7.0)
    return gate * torch.sigmoid(1.702 * gate) * (value.clamp(-7, 7) + 1)


def highway(t: Tensor, h: Tensor, x: Tensor) -> Tensor:
    return torch.lerp(x, h, torch.sigmoid(t))


def residual(x: Tensor, branch: Tensor, logit: Tensor) -> Tensor:
    return x + 2 * torch.sigmoid(logit) * branch


def rezero(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    return x + torch.tanh(scale) * branch


def rglru(r: Tensor, i: Tensor, x: Tensor, a: Tensor) -> Tensor:
    decay = -8.0 * F.softplus(a) * torch.sigmoid(r)
    return torch.sqrt(-torch.expm1(2 * decay)) * torch.sigmoid(i) * x


def squeeze_excite(x: Tensor, gate: Tensor) -> Tensor:
    return x * F.hardsigmoid(gate)


def step(w: Tensor, x: Tensor) -> Tensor:
    soft = torch.sigmoid(w)
    return x * ((w >= 0.5).to(x.dtype) - soft.detach() + soft)


def masked(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, x, x * 0.25)


SQUARE = (3, 1009)


def normed_gate(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm and a SiLU gate, as linear attention ends."""
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6) * F.silu(gate)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Mamba-2's order: the gate first, the norm written out and in float32."""
    h = (x * F.silu(gate)).float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * h.to(x.dtype)


def adaptive_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def affine_norm(x: Tensor, weight: Tensor, bias: Tensor, logit: Tensor) -> Tensor:
    return x + torch.sigmoid(logit) * F.layer_norm(x, x.shape[-1:], weight, bias)


def softmax_gate(scores: Tensor, weight: Tensor) -> Tensor:
    return F.softmax(scores, -1) * weight


def unit_gate(x: Tensor, gate: Tensor) -> Tensor:
    spread = x.std(-1, keepdim=True) + x.amax(-1, keepdim=True)
    return F.normalize(x, dim=-1) * torch.tanh(gate) + spread


REGIONS = [
    *(Region(f.__name__, f, (SQUARE, SQUARE)) for f in (swiglu, geglu, geglu_tanh, gpt_oss)),
    Region("highway", highway, (SQUARE,) * 3),
    Region("residual_column", residual, ((2, 37, 127), (2, 37, 127), (2, 37, 1))),
    Region("rezero_row", rezero, ((5, 257), (5, 257), (257,))),
    Region("rezero_scalar", rezero, ((5, 257), (5, 257), ())),
    Region("rglru", rglru, ((7, 127), (7, 127), (7, 127), (127,))),
    Region("squeeze_excite", squeeze_excite, ((3, 5, 7, 11), (3, 5, 1, 1))),
    Region("film_middle", residual, ((3, 13, 65), (3, 13, 65), (3, 1, 65))),
    Region("outer", squeeze_excite, ((17, 1), (1, 65))),
    Region("step", step, ((31, 33), (31, 33))),
]

# Functions of whole rows: the last operand but for `softmax_gate` is shared by rows, or stands once for each.
ROWS = [
    Region("normed_gate", normed_gate, ((2, 37, 127), (2, 37, 127), (127,))),
    Region("gated_norm", gated_norm, ((61, 65), (61, 65), (65,))),
    Region("adaptive_norm", adaptive_norm, ((2, 13, 65), (2, 1, 65), (2, 1, 65))),
    Region("affine_norm", affine_norm, ((3, 301, 17), (17,), (17,), (3, 1, 1))),
    Region("softmax_gate", softmax_gate, ((5, 7, 33), (5, 7, 1))),
    Region("unit_gate", unit_gate, ((31, 129), (129,))),
]
