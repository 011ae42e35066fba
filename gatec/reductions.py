"""Normalisations, softmax and statistics of a row, as formulas of sums and maxima over the last dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gatec.decompose import Number, decompose

aten = torch.ops.aten
Dims = list[int] | int | None


def size_of(x: Tensor, dim: Dims) -> int:
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return math.prod(x.shape[d] for d in dims)


@decompose(aten.mean.dim)
def mean(x: Tensor, dim: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return torch.sum(x, dim, keepdim, dtype=dtype) / size_of(x, dim)


@decompose(aten.var.correction)
def var(x: Tensor, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> Tensor:
    centred = x - torch.mean(x, dim, True)
    return torch.sum(centred * centred, dim, keepdim) / max(size_of(x, dim) - _free(correction), 0)


@decompose(aten.var_mean.correction)
def var_mean(
    x: Tensor, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return var(x, dim, correction=correction, keepdim=keepdim), torch.mean(x, dim, keepdim)


@decompose(aten.std.correction)
def std(x: Tensor, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> Tensor:
    return torch.sqrt(var(x, dim, correction=correction, keepdim=keepdim))


def _free(correction: Number | None) -> Number:
    return 1 if correction is None else correction


@decompose(aten._softmax.default)
def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e = torch.exp(x - torch.amax(x, dim, True))
    return e / torch.sum(e, dim, True)


@decompose(aten._softmax_backward_data.default)
def softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return (g - torch.sum(g * y, dim, True)) * y


@decompose(aten._log_softmax.default)
def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    centred = x - torch.amax(x, dim, True)
    return centred - torch.log(torch.sum(torch.exp(centred), dim, True))


@decompose(aten._log_softmax_backward_data.default)
def log_softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return g - torch.exp(y) * torch.sum(g, dim, True)


@decompose(aten.linalg_vector_norm.default)
def vector_norm(
    x: Tensor, ord: Number = 2, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if ord == 1:
        return torch.sum(torch.abs(x), dim, keepdim)
    return torch.sqrt(torch.sum(x * x, dim, keepdim)) if ord == 2 else NotImplemented


@decompose(aten.native_layer_norm.default)
def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    centre = torch.mean(x, dims, True)
    scale = torch.rsqrt(torch.mean((x - centre) * (x - centre), dims, True) + eps)
    y = (x - centre) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, centre, scale


@decompose(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    g: Tensor,
    x: Tensor,
    shape: Sequence[int],
    centre: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    dims, rows = list(range(x.dim() - len(shape), x.dim())), list(range(x.dim() - len(shape)))
    y = (x - centre) * scale
    inner = g if weight is None else g * weight
    dx = scale * (inner - torch.mean(inner, dims, True) - y * torch.mean(inner * y, dims, True))
    dweight = torch.sum(g * y, rows) if wanted[1] and weight is not None else None
    dbias = torch.sum(g, rows) if wanted[2] and bias is not None else None
    return dx if wanted[0] else None, dweight, dbias
