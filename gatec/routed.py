"""Convolutions of images with the kernels of their experts: `gatec::routed_convolution`.

    y[n] = sum of mix[n, e] * conv(x[n]; weight + deltas[e]) over the experts e with mix[n, e] != 0

and conv(x[n]; weight) where there is none. Each expert convolves its own images, all at once, so that an image pays for
the experts that it has, and no kernel is made for an image alone.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


class Geometry(NamedTuple):
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        none = [0] * len(self.stride)
        return torch.convolution(x, kernel, None, self.stride, self.padding, self.dilation, False, none, self.groups)

    def pull(self, grad: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and kernel."""
        none, wanted = [0] * len(self.stride), [True, True, False]
        dx, dkernel, _ = torch.ops.aten.convolution_backward(
            grad, x, kernel, None, self.stride, self.padding, self.dilation, False, none, self.groups, wanted
        )
        return dx, dkernel


class Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    geometry: Geometry

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def routed_convolution(
    x: Tensor, weight: Tensor, deltas: Tensor, mix: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """x[images, channels, ...], or one image; weight[out, channels / groups, ...], deltas[experts, *weight],
    mix[images, experts].

    Follows autocast as convolutions do. Differentiable as often as one likes; where it is compiled or traced, once.
    """
    tensors, given = (x, weight, deltas, mix), (list(stride), list(padding), list(dilation), groups)
    # A graph that is being written keeps the call as one node.
    if has_torch_function(tensors):
        kept: Tensor = handle_torch_function(routed_convolution, tensors, *tensors, *given)
        return kept
    if x.dim() < weight.dim():
        return routed_convolution(x.unsqueeze(0), weight, deltas, mix, *given).squeeze(0)
    device = x.device.type
    known = torch.amp.is_autocast_available(device)
    if known and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x, weight, deltas = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight, deltas))
    out: Tensor = (routed_op if seen() else product)(x, weight, deltas, mix, *given)
    return out


def seen() -> bool:
    """Whether a trace, a mode or a transform has to see the call as one."""
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return traced or torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()


def product(
    x: Tensor, weight: Tensor, deltas: Tensor, mix: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    geometry = Geometry(stride, padding, dilation, groups)
    images, alone = images_of(mix.detach())
    parts = []
    for delta, own, counts in zip(deltas.unbind(0), images, mix.unbind(1), strict=True):
        if len(own):
            made = geometry.convolve(taken(x, own), weight + delta)
            parts.append((own, made * beside(counts[own], made)))
    if len(alone) or not parts:
        parts.append((alone, geometry.convolve(taken(x, alone), weight)))
    return together(parts, len(x))


def taken(x: Tensor, images: Tensor) -> Tensor:
    return x if len(images) == len(x) else x[images]


def together(parts: list[tuple[Tensor, Tensor]], images: int) -> Tensor:
    """The sum of what was made of each image; a single part has all of them, in order."""
    first = parts[0][1]
    if len(parts) == 1:
        return first
    out = first.new_zeros(images, *first.shape[1:])
    for own, made in parts:
        out.index_add_(0, own, made)
    return out


def images_of(mix: Tensor) -> tuple[list[Tensor], Tensor]:
    """The images of each expert, and those without one. Reads values twice, which waits for a GPU."""
    chosen = mix != 0
    table = torch.cat([chosen, ~chosen.any(1, keepdim=True)], 1).t()
    owner, image = table.nonzero(as_tuple=True)
    *own, alone = image.split(torch.bincount(owner, minlength=len(table)).tolist())
    return own, alone


def beside(counts: Tensor, images: Tensor) -> Tensor:
    """One number for each image, in the form in which it multiplies images."""
    return counts.to(images.dtype).view(-1, *[1] * (images.dim() - 1))


def pulled(
    grad: Tensor, x: Tensor, weight: Tensor, deltas: Tensor, mix: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight, deltas and mix."""
    geometry = Geometry(stride, padding, dilation, groups)
    images, alone = images_of(mix)
    dx, dweight, ddeltas, dmix = (torch.zeros_like(t) for t in (x, weight, deltas, mix))
    if len(alone):
        back, dweight = geometry.pull(grad[alone], x[alone], weight)
        dx.index_add_(0, alone, back)
    for e, own in enumerate(images):
        if not len(own):
            continue
        kernel, rows, counts, slope = weight + deltas[e], x[own], mix[own, e], grad[own]
        back, ddeltas[e] = geometry.pull(slope * beside(counts, slope), rows, kernel)
        dx.index_add_(0, own, back)
        dmix[own, e] = (slope * geometry.convolve(rows, kernel)).flatten(1).sum(1, dtype=dmix.dtype)
    return dx, dweight + ddeltas.sum(0), ddeltas, dmix


LISTS = "int[] stride, int[] padding, int[] dilation, SymInt groups"
OPERANDS = f"Tensor x, Tensor weight, Tensor deltas, Tensor mix, {LISTS}"
routed_op = torch.library.custom_op(
    "gatec::routed_convolution", lambda *operands: product(*operands).contiguous(), mutates_args=(),
    schema=f"({OPERANDS}) -> Tensor",
)  # fmt: skip
pulled_op = torch.library.custom_op(
    "gatec::routed_convolution_backward", pulled, mutates_args=(),
    schema=f"(Tensor grad, {OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
ROUTED_CONVOLUTION = torch.ops.gatec.routed_convolution.default


@routed_op.register_fake
def _(
    x: Tensor, weight: Tensor, deltas: Tensor, mix: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    return torch.empty_like(Geometry(stride, padding, dilation, groups).convolve(x, weight)).contiguous()


@pulled_op.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, deltas: Tensor, mix: Tensor, *rest: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(deltas), torch.empty_like(mix)


def save(ctx: Context, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(t for t in inputs if isinstance(t, Tensor)))
    ctx.geometry = Geometry(*inputs[4:])  # type: ignore[arg-type]


def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*pulled_op(grad, *ctx.saved_tensors, *ctx.geometry), None, None, None, None)


routed_op.register_autograd(backward, setup_context=save)
