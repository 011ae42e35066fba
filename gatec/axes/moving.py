"""Operators that only move numbers: what they do with the axes is what they do with the dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatec.axes.atoms import Atom, Axis, Cut, axis, narrow, pin, size, split, summed, unify
from gatec.axes.walk import PLACES, Dims, Walk, rule


@rule("clone", "detach", "alias", "contiguous", "_to_copy", "to", "lift_fresh", "lift_fresh_copy",
      "native_dropout", "dropout", "positive", "view_as_real_copy", "_conj", "resolve_conj", "resolve_neg",
      "lift", "_unsafe_masked_index_put_accumulate")  # fmt: skip
def same(walk: Walk, out: Any, x: Tensor, *_: Any, **__: Any) -> Any:
    return walk.of(x) if isinstance(out, Tensor) else [walk.of(x) for _ in out]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "flatten", "unflatten")
def view(walk: Walk, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Any:
    """The same row-major order, cut at other places: run by run, so that what one run does not fit leaves the others."""
    before, after = list(walk.of(x)), list(out.shape)
    found: Dims = []
    while after:
        old: Dims = [before.pop(0)] if before else [()]
        new = [after.pop(0)]
        while (a := size(x for d in old for x in d)) != (b := math.prod(new)):
            if a < b:
                old.append(before.pop(0))
            else:
                new.append(after.pop(0))
        found += _cut([x for d in old for x in d], new)
    return found


def _cut(atoms: list[Atom], sizes: list[int]) -> Dims:
    try:
        return split(atoms, sizes)
    except Cut:
        why = f"a view cuts it into {' x '.join(map(str, sizes))}"
        pin(atoms, why)
        return [axis(n, why) for n in sizes]


@rule("permute")
def permute(walk: Walk, out: Tensor, x: Tensor, order: Sequence[int]) -> Any:
    dims = walk.of(x)
    return [dims[n] for n in order]


@rule("transpose", "swapaxes")
def transpose(walk: Walk, out: Tensor, x: Tensor, one: int, two: int) -> Any:
    dims = list(walk.of(x))
    dims[one], dims[two] = dims[two], dims[one]
    return dims


@rule("t", "numpy_T")
def turned(walk: Walk, out: Tensor, x: Tensor) -> Any:
    return list(reversed(walk.of(x)))


@rule("unsqueeze")
def unsqueeze(walk: Walk, out: Tensor, x: Tensor, dim: int) -> Any:
    dims = list(walk.of(x))
    dims.insert(dim % out.dim(), ())
    return dims


@rule("squeeze", "squeeze_copy")
def squeeze(walk: Walk, out: Tensor, x: Tensor, dims: Any = None) -> Any:
    chosen = (
        range(x.dim()) if dims is None else [d % max(x.dim(), 1) for d in ([dims] if isinstance(dims, int) else dims)]
    )
    return [d for n, d in enumerate(walk.of(x)) if not (n in chosen and x.shape[n] == 1)]


@rule("expand", "broadcast_to")
def expand(walk: Walk, out: Tensor, x: Tensor, *_: Any, **__: Any) -> Any:
    """Copies are slots of their own: how many there are is a number of the module's, or an input's."""
    dims = [()] * (out.dim() - x.dim()) + list(walk.of(x))
    return [axis(n) if n != 1 and size(d) == 1 else d for n, d in zip(out.shape, dims, strict=True)]


@rule("repeat")
def repeat(walk: Walk, out: Tensor, x: Tensor, times: Sequence[int]) -> Any:
    dims = [()] * (out.dim() - x.dim()) + list(walk.of(x))
    return [(*axis(n), *d) for n, d in zip(times, dims, strict=True)]


@rule("slice")
def cut(walk: Walk, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    dims, n = list(walk.of(x)), x.shape[dim]
    if out.shape == x.shape:
        return dims
    first = min(max((start or 0) + (n if (start or 0) < 0 else 0), 0), n)
    dims[dim] = (
        _narrow(walk, dims[dim], first, out.shape[dim])
        if step == 1
        else _every(walk, dims[dim], n, step, out.shape[dim])
    )
    return dims


def _narrow(walk: Walk, dim: Axis, start: int, length: int) -> Axis:
    try:
        return narrow(dim, start, length)
    except Cut:
        return walk.lost(dim, length, "a slice cuts through its slots")


def _every(walk: Walk, dim: Axis, length: int, step: int, left: int) -> Axis:
    try:
        return _strided(dim, length, step)
    except Cut:
        return walk.lost(dim, left, "a slice with steps cuts through its slots")


def _strided(dim: Axis, length: int, step: int) -> Axis:
    if length % step:
        raise Cut
    outer, inner = split(dim, [length // step, step])
    pin(inner, "its slots are taken one by one")
    return outer


@rule("select")
def select(walk: Walk, out: Tensor, x: Tensor, dim: int, index: int) -> Any:
    dims = list(walk.of(x))
    walk.owe(out, dims.pop(dim), "one of its slots is taken")
    return dims


@rule("unbind")
def unbind(walk: Walk, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> Any:
    return [select(walk, one, x, dim, n) for n, one in enumerate(out)]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk",
      "split_copy", "split_with_sizes_copy", "tensor_split")  # fmt: skip
def parts(walk: Walk, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> Any:
    found, at = [], 0
    for one in out:
        dims = list(walk.of(x))
        dims[dim] = _narrow(walk, dims[dim], at, one.shape[dim])
        at += one.shape[dim]
        found.append(dims)
    return found


@rule("cat", "concatenate", "concat")
def cat(walk: Walk, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    dim %= out.dim()
    given = [walk.of(t) for t in tensors if t.dim() == out.dim()]
    for n in range(out.dim()):
        if n != dim:
            for other in given[1:]:
                unify(given[0][n], other[n])
    found = list(given[0])
    found[dim] = summed([d[dim] or (Atom(1),) for d in given if size(d[dim])])
    return found


@rule("stack")
def stack(walk: Walk, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    given = [walk.of(t) for t in tensors]
    for other in given[1:]:
        for a, b in zip(given[0], other, strict=True):
            unify(a, b)
    found = list(given[0])
    found.insert(dim % out.dim(), axis(len(tensors), "its slots are stacked one by one"))
    return found


@rule("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "replication_pad1d")
def padded(walk: Walk, out: Tensor, x: Tensor, pads: Sequence[int], *_: Any) -> Any:
    dims = list(walk.of(x))
    for n, (left, right) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        at, why = x.dim() - 1 - n, "it is padded to a fixed width"
        if left < 0 or right < 0:
            dims[at] = _narrow(walk, dims[at], max(-left, 0), x.shape[at] + min(left, 0) + min(right, 0))
        if left > 0 or right > 0:
            middle = dims[at] or (Atom(1),)
            before, after = [(Atom(n, why),) for n in [left] if n > 0], [(Atom(n, why),) for n in [right] if n > 0]
            dims[at] = summed([*before, middle, *after])
    return dims


@rule("roll", "flip")
def rolled(walk: Walk, out: Tensor, x: Tensor, *args: Any) -> Any:
    moved = args[-1] if args[-1] != [] else range(x.dim())
    dims = list(walk.of(x))
    for n in moved:
        why = "its slots are put into another order"
        pin(dims[n], why)
        dims[n] = axis(x.shape[n], why)
    return dims


@rule("index_select")
def index_select(walk: Walk, out: Tensor, x: Tensor, dim: int, index: Tensor) -> Any:
    return _looked_up(walk, x, dim, list(walk.of(index)) or [()])


@rule("as_strided")
def strided(walk: Walk, out: Tensor, x: Tensor, *_: Any) -> Any:
    """Dimensions with the step and length of one of x's that no other one runs into; the rest are positions, as of windows."""
    dims, left, found = walk.of(x), [n for n, length in enumerate(x.shape) if length > 1], list[Axis]()
    if out.storage_offset() != x.storage_offset():
        raise Cut
    for n, length in enumerate(out.shape):
        same = [m for m in left if (x.shape[m], x.stride(m)) == (length, out.stride(n))]
        like = [m for m in same if _apart(x, m) and _apart(out, n)]
        left = [m for m in left if m not in like[:1]]
        found.append(dims[like[0]] if like else axis(length, PLACES))
    for m in left:
        pin(dims[m], PLACES)
    return found


def _apart(x: Tensor, dim: int) -> bool:
    """Whether the other dimensions' steps leave the place in this one as it is."""
    step, length = x.stride(dim), x.shape[dim]
    others = [(x.stride(n), x.shape[n]) for n in range(x.dim()) if n != dim and x.shape[n] > 1]
    below = sum((n - 1) * s for s, n in others if s < step)
    return 0 < step > below and all(s % (step * length) == 0 for s, _ in others if s >= step)


@rule("embedding")
def embedding(walk: Walk, out: Tensor, table: Tensor, index: Tensor, *_: Any, **__: Any) -> Any:
    return _looked_up(walk, table, 0, walk.of(index))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def bags(walk: Walk, out: Sequence[Tensor], table: Tensor, *_: Any, **__: Any) -> Any:
    """Sums, means or maxima of rows; what is beside them counts rows."""
    found = _looked_up(walk, table, 0, [axis(len(out[0]), PLACES)])
    return [found, *[[axis(n, PLACES) for n in t.shape] for t in out[1:]]]


@rule("gather")
def gather(walk: Walk, out: Tensor, x: Tensor, dim: int, index: Tensor, **_: Any) -> Any:
    dims = walk.of(index)
    pin([*walk.of(x)[dim]], "its rows are looked up by number")
    for n, (a, b) in enumerate(zip(walk.of(x), dims, strict=True)):
        if n != dim % x.dim() and size(a) == size(b):
            unify(a, b)
    return dims


@rule("index", "_unsafe_index")
def index(walk: Walk, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Dimensions that are indexed go, those of the indices come: in their place, or in front where they lie apart."""
    dims, why = walk.of(x), "its rows are looked up by number"
    indices = [*indices, *[None] * (x.dim() - len(indices))]
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        raise Cut
    taken = [n for n, i in enumerate(indices) if i is not None]
    for n in taken:
        pin(dims[n], why)
    wide = out.dim() - (x.dim() - len(taken))
    kept = [dims[n] for n in range(x.dim()) if n not in taken]
    together = taken == list(range(taken[0], taken[-1] + 1))
    at = taken[0] if together else 0
    return [*kept[:at], *[axis(n, why) for n in out.shape[at : at + wide]], *kept[at:]]


def _looked_up(walk: Walk, x: Tensor, dim: int, rows: Dims) -> Dims:
    dims = list(walk.of(x))
    pin(dims[dim], "its rows are looked up by number")
    dims[dim : dim + 1 or None] = rows
    return dims


@rule("index_put", "index_add", "index_copy", "scatter", "scatter_add", "slice_scatter", "select_scatter",
      "masked_scatter", "scatter_reduce")  # fmt: skip
def written(walk: Walk, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What is written must have the slots of where it goes, in dimensions that are as long in both."""
    dims, values = walk.of(x), [a for a in args if isinstance(a, Tensor)][-1]
    why = "its rows are written by number"
    if values.dim() == x.dim():
        for n, (a, b) in enumerate(zip(dims, walk.of(values), strict=True)):
            if n and size(a) == size(b):
                unify(a, b)
            else:
                pin(a, why)
                pin(b, why)
        return dims
    raise Cut


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like",
      "ones_like", "full_like", "empty_like", "scalar_tensor", "empty_strided", "new_empty_strided",
      "_efficientzerotensor")  # fmt: skip
def uniform(walk: Walk, out: Tensor, *_: Any, **__: Any) -> Any:
    """As many equal numbers as something else has slots."""
    return [axis(n) for n in out.shape]


@rule("arange", "linspace", "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "eye",
      "tril_indices", "triu_indices")  # fmt: skip
def made(walk: Walk, out: Tensor, *_: Any, **__: Any) -> Any:
    return [axis(n, "it meets numbers that the forward makes") for n in out.shape]
