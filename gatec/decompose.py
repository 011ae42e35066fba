"""Composite aten operators in terms of a few simple ones, as functions that read like formulas.

Torch's own decompositions serve any device and type: they allocate, copy in place and cast. These
are for kernels which compute in one wide type, so they do none of that.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

aten = torch.ops.aten
Number = float | int
Bound = Tensor | Number | None

Formula = TypeVar("Formula", bound=Callable[..., object])

DECOMPOSITIONS: dict[Any, Callable[..., object]] = {}


def decompose(*ops: object) -> Callable[[Formula], Formula]:
    def register(fn: Formula) -> Formula:
        DECOMPOSITIONS.update(dict.fromkeys(ops, fn))
        return fn

    return register


@decompose(aten.silu.default)
def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@decompose(aten.silu_backward.default)
def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return g * s * (1 + x * (1 - s))


@decompose(aten.sigmoid_backward.default)
def sigmoid_backward(g: Tensor, y: Tensor) -> Tensor:
    return g * y * (1 - y)


@decompose(aten.tanh_backward.default)
def tanh_backward(g: Tensor, y: Tensor) -> Tensor:
    return g * (1 - y * y)


@decompose(aten.log_sigmoid_forward.default)
def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(-torch.abs(x))
    return torch.clamp_max(x, 0) - torch.log1p(decay), decay


@decompose(aten.log_sigmoid_backward.default)
def log_sigmoid_backward(g: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    return g * torch.sigmoid(-x)


@decompose(aten.gelu.default)
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@decompose(aten.gelu_backward.default)
def gelu_backward(g: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        density = torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return g * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * density)
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x * x * x))
    slope = c * (1 + 3 * 0.044715 * x * x)
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


@decompose(aten.softplus.default)
def softplus(x: Tensor, beta: Number = 1, threshold: Number = 20) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, x, torch.log1p(torch.exp(z)) / beta)


@decompose(aten.softplus_backward.default)
def softplus_backward(g: Tensor, x: Tensor, beta: Number, threshold: Number) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, g, g * torch.sigmoid(z))


@decompose(aten.mish.default)
def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


@decompose(aten.elu.default)
def elu(x: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Tensor:
    return torch.where(x > 0, x * scale, torch.expm1(x * input_scale) * (alpha * scale))


@decompose(aten.celu.default)
def celu(x: Tensor, alpha: Number = 1) -> Tensor:
    return elu(x, alpha, 1, 1 / alpha)


@decompose(aten.elu_backward.default)
def elu_backward(g: Tensor, alpha: Number, scale: Number, input_scale: Number, is_result: bool, x: Tensor) -> Tensor:
    steep = input_scale * alpha * scale
    below: Tensor
    below = (x + alpha * scale) * input_scale if is_result else torch.exp(x * input_scale) * steep
    return g * torch.where(x > 0, torch.full_like(x, scale), below)


@decompose(aten.leaky_relu.default)
def leaky_relu(x: Tensor, slope: Number = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@decompose(aten.leaky_relu_backward.default)
def leaky_relu_backward(g: Tensor, x: Tensor, slope: Number, is_result: bool) -> Tensor:
    return torch.where(x > 0, g, g * slope)


@decompose(aten.threshold.default)
def threshold(x: Tensor, threshold: Number, value: Number) -> Tensor:
    return torch.where(x <= threshold, value, x)


@decompose(aten.threshold_backward.default)
def threshold_backward(g: Tensor, x: Tensor, threshold: Number) -> Tensor:
    return torch.where(x <= threshold, 0.0, g)


@decompose(aten.hardtanh.default)
def hardtanh(x: Tensor, low: Number = -1, high: Number = 1) -> Tensor:
    return torch.clamp_max(torch.clamp_min(x, low), high)


@decompose(aten.hardtanh_backward.default)
def hardtanh_backward(g: Tensor, x: Tensor, low: Number, high: Number) -> Tensor:
    return torch.where((x <= low) | (x >= high), 0.0, g)


@decompose(aten.hardsigmoid.default)
def hardsigmoid(x: Tensor) -> Tensor:
    return torch.clamp_max(torch.clamp_min(x + 3, 0), 6) / 6


@decompose(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), g / 6, 0.0)


@decompose(aten.hardswish.default)
def hardswish(x: Tensor) -> Tensor:
    return x * torch.clamp_max(torch.clamp_min(x + 3, 0), 6) / 6


@decompose(aten.hardswish_backward.default)
def hardswish_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x < 3, g * (x / 3 + 0.5), g))


@decompose(aten.softshrink.default)
def softshrink(x: Tensor, lambd: Number = 0.5) -> Tensor:
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, x * 0.0))


@decompose(aten.hardshrink.default)
def hardshrink(x: Tensor, lambd: Number = 0.5) -> Tensor:
    return torch.where((x >= -lambd) & (x <= lambd), 0.0, x)


@decompose(aten.softshrink_backward.default, aten.hardshrink_backward.default)
def shrink_backward(g: Tensor, x: Tensor, lambd: Number) -> Tensor:
    return torch.where((x >= -lambd) & (x <= lambd), 0.0, g)


@decompose(aten.clamp.default, aten.clamp.Tensor)
def clamp(x: Tensor, low: Bound = None, high: Bound = None) -> Tensor:
    raised = x if low is None else torch.clamp_min(x, low)
    return raised if high is None else torch.clamp_max(raised, high)


@decompose(aten.lerp.Scalar)
def lerp_scalar(a: Tensor, b: Tensor, weight: Number) -> Tensor:
    return a + weight * (b - a) if abs(weight) < 0.5 else b - (b - a) * (1 - weight)


@decompose(aten.lerp.Tensor)
def lerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    # From the nearer end, as torch does, so that a weight of one gives b to the last bit.
    step = b - a
    return torch.where(torch.abs(weight) < 0.5, a + weight * step, b - step * (1 - weight))


@decompose(aten.addcmul.default)
def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Tensor:
    return x + a * b if value == 1 else x + value * (a * b)


@decompose(aten.addcdiv.default)
def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Tensor:
    return x + a / b if value == 1 else x + value * (a / b)


@decompose(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(x: Tensor, mask: Tensor, value: Tensor | Number) -> Tensor:
    return torch.where(mask, value, x)


@decompose(aten.fill.Scalar)
def fill(x: Tensor, value: Number) -> Tensor:
    # Not full_like: what is filled has not been written yet, and must drop out as dead code.
    return torch.full(x.shape, value, dtype=x.dtype, device=x.device)
