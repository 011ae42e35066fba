"""Operators that compute: element by element, over a dimension, or by contracting one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from gatec.axes.atoms import Axis, axis, mark, narrow, pin, size, split, unify
from gatec.axes.walk import PLACES, Dims, Walk, rule

KERNEL = "it is as large as a convolution's kernel"


@rule("pointwise", "copy_", "copy", "masked_fill", "fill", "fill_", "where", "addcmul", "addcdiv", "lerp",
      "clamp", "tril", "triu", "native_dropout_backward", "bernoulli", "exponential", "normal", "uniform",
      "zero", "zero_", "_softmax_backward_data")  # fmt: skip
def pointwise(walk: Walk, out: Any, *args: Any, **kwargs: Any) -> Any:
    """Element by element: dimensions that are equally long, counted from the last, are the same slots."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    outs = [out] if isinstance(out, Tensor) else list(out)
    dims: Dims = []
    for n, length in enumerate(reversed(outs[0].shape)):
        here = [walk.of(t)[-1 - n] for t in tensors if t.dim() > n and t.shape[-1 - n] == length != 1]
        for other in here[1:]:
            unify(here[0], other)
        dims.insert(0, here[0] if here else axis(length))
    return dims if isinstance(out, Tensor) else [dims for _ in outs]


@rule("mm", "bmm", "mv", "dot", "_grouped_mm")
def product(walk: Walk, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Any:
    """Rows of one by columns of the other; batches side by side."""
    left, right = walk.of(a), walk.of(b)
    macs = out.numel() * a.shape[-1]
    if not walk.contract(b, 0 if b.dim() == 1 else -2, macs) | walk.contract(a, -1, macs):
        mark(left[-1], "computed", walk.where)
    if a.dim() != b.dim() and b.dim() == 3:  # rows sorted by their matrix
        pin(right[0], "its slots are chosen by number")
        unify(left[-1], right[1])
        return [left[0], right[2]]
    unify(left[-1], right[0] if b.dim() == 1 else right[-2])
    where = walk.where
    if a.dim() == 3:
        unify(left[0], right[0])
        mark(left[0], "batch", where)
        walk.width(left[-1], "dotted")
        walk.width(right[-1], "mixed")
    return [*left[:-1], *(right[:-2] if a.dim() < b.dim() else []), *(right[-1:] if b.dim() > 1 else [])]


@rule("addmm", "baddbmm", "addmv", "addbmm")
def added_product(walk: Walk, out: Tensor, c: Tensor, a: Tensor, b: Tensor, **_: Any) -> Any:
    dims = product(walk, out, a, b)
    for mine, its in zip(reversed(dims), reversed(walk.of(c)), strict=False):
        if size(mine) == size(its) != 1:
            unify(mine, its)
    return dims


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(walk: Walk, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                transposed: bool, output_padding: Any, groups: int, *_: Any) -> Any:  # fmt: skip
    dims, kernel = walk.of(x), walk.of(weight)
    for dim in kernel[2:]:
        pin(dim, KERNEL)
    channels = dims[-len(kernel) + 1]
    if groups == 1:
        into, found = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
    else:
        across, rows = split(kernel[0], [groups, weight.shape[0] // groups])
        into, found = (
            ((*across, *rows), (*across, *kernel[1])) if transposed else ((*across, *kernel[1]), (*across, *rows))
        )
        mark(across, "groups", walk.where)
    if not walk.contract(weight, 0 if transposed else 1, (x if transposed else out).numel() * weight[0].numel()):
        mark(into, "computed", walk.where)
    unify(channels, into)
    if bias is not None:
        unify(found, walk.of(bias)[0])
    batch, places = dims[: -len(kernel) + 1], dims[-len(kernel) + 2 :]
    steps, pads = (list(v) * (len(places) // len(v)) for v in (stride, padding))  # one number may stand for all
    alone = [k == s == 1 and not p for k, s, p in zip(weight.shape[2:], steps, pads, strict=True)]
    return [*batch, found, *[_place(*given) for given in zip(places, out.shape[len(batch) + 1 :], alone, strict=True)]]


def _place(dim: Axis, length: int, alone: bool) -> Axis:
    """Positions behind a kernel: the same ones where it looks at one at a time."""
    if alone and size(dim) == length:
        return dim
    pin(dim, PLACES)
    return axis(length, PLACES)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(walk: Walk, out: Any, x: Tensor, shape: Sequence[int], *affine: Any) -> Any:
    dims = walk.of(x)
    for dim in dims[-len(shape) :]:
        mark(dim, "norm", walk.where)
    for value in affine:
        if isinstance(value, Tensor):
            for mine, its in zip(dims[-len(shape) :], walk.of(value), strict=True):
                unify(mine, its)
    if isinstance(out, Tensor):
        return dims
    return [
        dims,
        *[
            [d if size(d) == n else axis(n, PLACES) for d, n in zip(dims, t.shape, strict=False)]
            for t in out[1:]
            if t is not None
        ],
    ]


@rule("native_group_norm")
def group_norm(
    walk: Walk, out: Any, x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    dims = walk.of(x)
    across, inner = split(dims[1], [groups, c // groups])
    for dim in (inner, *dims[2:]):
        mark(dim, "norm", walk.where)
    mark(across, "groups", walk.where)
    for value in (weight, bias):
        if value is not None:
            unify(dims[1], walk.of(value)[0])
    return [dims, [dims[0], across], [dims[0], across]]


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
      "cudnn_batch_norm", "batch_norm", "_batch_norm_no_update", "_batch_norm_with_update")  # fmt: skip
def batch_norm(walk: Walk, out: Any, x: Tensor, *rest: Any) -> Any:
    """Channel by channel; over everything else where the statistics are those of its input, as of standardised weights."""
    dims = walk.of(x)
    channels = dims[1]
    if not any(isinstance(v, Tensor) for v in rest[2:4]) or rest[4] is True:
        for dim in (dims[0], *dims[2:]):
            mark(dim, "norm", walk.where)
    for value in rest[:4]:
        if isinstance(value, Tensor):
            unify(channels, walk.of(value)[0])
    if isinstance(out, Tensor):
        return dims
    return [dims, *[[channels] if t.numel() == size(channels) else [axis(n) for n in t.shape] for t in out[1:]]]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
def softmax(walk: Walk, out: Tensor, x: Tensor, dim: int, *_: Any, **__: Any) -> Any:
    dims = walk.of(x)
    if dims:
        pin(dims[dim], "a softmax or a running sum goes over it")
    return dims


@rule("mean", "sum", "var", "std", "var_mean", "std_mean", "logsumexp", "amax", "amin", "prod", "any",
      "all", "argmax", "argmin", "max", "min", "median", "mean_dim", "nansum", "count_nonzero")  # fmt: skip
def reduction(walk: Walk, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A sum is the same without what is zero; a mean is where it is told how many there were; a maximum is not."""
    outs = [out] if isinstance(out, Tensor) else list(out)
    dims, chosen = walk.of(x), _over(walk, x, outs[0], args, kwargs)
    for n in chosen:
        mark(dims[n], "norm", walk.where)
    left = (
        [() if n in chosen else d for n, d in enumerate(dims)]
        if outs[0].dim() == x.dim()
        else [d for n, d in enumerate(dims) if n not in chosen]
    )
    return left if isinstance(out, Tensor) else [left for _ in outs]


@rule("linalg_vector_norm", "norm")
def vector_norm(walk: Walk, out: Any, x: Tensor, _: Any = 2, *args: Any, **kwargs: Any) -> Any:
    """A reduction, whose first number is the power and no dimension."""
    return reduction(walk, out, x, *args, **kwargs)


def _over(walk: Walk, x: Tensor, out: Tensor, args: Any, kwargs: Any) -> list[int]:
    given = kwargs.get(
        "dim", next((a for a in args if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)), None)
    )
    if given is None or given == []:
        return list(range(x.dim()))
    found = [given] if isinstance(given, int) else list(given)
    return [n % max(x.dim(), 1) for n in found]


@rule("sort", "topk", "argsort", "kthvalue", "mode")
def sorted_(walk: Walk, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    why = "its slots are sorted"
    for dim in walk.of(x):
        pin(dim, why)
    outs = [out] if isinstance(out, Tensor) else list(out)
    found = [[axis(n, why) for n in t.shape] for t in outs]
    return found[0] if isinstance(out, Tensor) else found


@rule("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "avg_pool3d",
      "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
      "adaptive_max_pool3d", "adaptive_avg_pool1d", "max_pool3d_with_indices", "max_pool1d",
      "upsample_nearest2d", "upsample_nearest1d", "upsample_nearest3d", "upsample_bilinear2d",
      "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
      "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "_upsample_nearest_exact1d", "grid_sampler_2d",
      "fractional_max_pool2d", "reflection_pad3d", "replication_pad3d")  # fmt: skip
def pooled(walk: Walk, out: Any, x: Tensor, *_: Any, **__: Any) -> Any:
    """Positions change, channels do not."""
    dims = walk.of(x)
    outs = [out] if isinstance(out, Tensor) else list(out)
    spatial = min(max(x.dim() - 2, 1), 3)
    for dim in dims[x.dim() - spatial :]:
        pin(dim, PLACES)
    found = [[*dims[: x.dim() - spatial], *[axis(n, PLACES) for n in t.shape[x.dim() - spatial :]]] for t in outs]
    return found[0] if isinstance(out, Tensor) else found


@rule("im2col", "col2im")
def unfolded(walk: Walk, out: Tensor, x: Tensor, *_: Any) -> Any:
    dims = walk.of(x)
    if out.shape[1] % x.shape[1]:
        outer, inner = split(dims[1], [out.shape[1], x.shape[1] // out.shape[1]])
        pin(inner, PLACES)
        return [dims[0], outer, *[axis(n, PLACES) for n in out.shape[2:]]]
    return [dims[0], (*dims[1], *axis(out.shape[1] // x.shape[1], PLACES)), *[axis(n, PLACES) for n in out.shape[2:]]]


@rule("unfold")
def windows(walk: Walk, out: Tensor, x: Tensor, dim: int, *_: Any) -> Any:
    dims = list(walk.of(x))
    pin(dims[dim], PLACES)
    dims[dim] = axis(out.shape[dim], PLACES)
    return [*dims, axis(out.shape[-1], PLACES)]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(walk: Walk, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
    a, b, c = walk.of(q), walk.of(k), walk.of(v)
    for n in range(q.dim() - 2):
        shared = split(a[n], [k.shape[n], q.shape[n] // k.shape[n]])[0] if q.shape[n] != k.shape[n] else a[n]
        unify(shared, b[n])
        unify(b[n], c[n])
    unify(a[-1], b[-1])
    unify(b[-2], c[-2])
    pin(b[-2], "a softmax or a running sum goes over it")
    walk.width(a[-1], "dotted" if kwargs.get("scale") is not None else "scaled")
    walk.width(c[-1], "mixed")
    mark(a[-3], "batch", walk.where)
    masks = [m for m in [*args, kwargs.get("attn_mask")] if isinstance(m, Tensor) and m.dim() >= 3]
    for mask in masks:
        if mask.shape[-3] == q.shape[-3] != 1:
            unify(walk.of(mask)[-3], a[-3])
    found: list[Dims] = [[*a[:-1], c[-1]]]
    return [*found, *[[*a[:-1]] if list(t.shape) == list(q.shape[:-1]) else [axis(n, PLACES) for n in t.shape]
                      for t in out[1:] if isinstance(t, Tensor)]]  # fmt: skip


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(walk: Walk, out: Any, v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """A slot of `dim` is divided by its own norm, which nothing is left of where it is zero: its factor in g closes it."""
    dims = walk.of(v)
    if (name := walk.stored.get(v.untyped_storage().data_ptr())) is not None:
        walk.divided.add((name, dim % v.dim()))
    for mine, its in zip(dims, walk.of(g), strict=True):
        if size(mine) == size(its) != 1:
            unify(mine, its)
    return dims if isinstance(out, Tensor) else [dims, walk.of(g)]


@rule("glu")
def glu(walk: Walk, out: Tensor, x: Tensor, dim: int = -1) -> Any:
    dims, half = list(walk.of(x)), x.shape[dim] // 2
    one, two = narrow(dims[dim], 0, half), narrow(dims[dim], half, half)
    unify(one, two)
    dims[dim] = one
    return dims
