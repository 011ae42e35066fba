"""Torch's own layers as terms, called as modules, as functions or as operators: one term for one layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatec.match import packed as pk
from gatec.match.algebra import Shape
from gatec.match.terms import Table, Term, join


@dataclass(frozen=True)
class Conv:
    """A convolution by the names of its parameters; `out` channels of `fan` weights each."""

    weight: str
    bias: str | None
    kernel: tuple[int, ...]
    groups: int
    out: int
    fan: int
    given: str  # stride, padding and dilation

    @property
    def path(self) -> str:
        return self.weight.rpartition(".")[0]

    @property
    def elements(self) -> int:
        return self.out * (self.fan + (self.bias is not None))


@dataclass(frozen=True)
class Norm:
    """A normalisation by its kind, its parameters and what else it was given."""

    kind: str
    weight: str | None
    bias: str | None
    given: Any

    @property
    def path(self) -> str:
        return (self.weight or "").rpartition(".")[0]


@dataclass(frozen=True)
class Lookup:
    """A row of a table by its number."""

    weight: str
    width: int

    @property
    def path(self) -> str:
        return self.weight.rpartition(".")[0]

    @property
    def elements(self) -> int:
        return self.width


# -- modules ----------------------------------------------------------------------------------------------------------


def module(table: Table, path: str, layer: Any, x: Term, seen: Shape, shape: Shape) -> Term | None:
    """The term of a call of a layer with parameters, or of a pooling."""
    kind = type(layer)
    bias = join(path, "bias") if getattr(layer, "bias", None) is not None else None
    weight = join(path, "weight") if getattr(layer, "weight", None) is not None else None
    if isinstance(layer, nn.modules.conv._ConvNd) and weight is not None:
        given = repr((layer.stride, layer.padding, layer.dilation))
        data = _conv(weight, bias, tuple(layer.weight.shape), layer.groups, layer.transposed, given)
        return table.make("conv", pk.exposed(table, x, seen), data=data, shape=shape)
    if isinstance(layer, NORMS):
        batch = isinstance(layer, nn.modules.batchnorm._NormBase)
        x = x if kind in (nn.LayerNorm, nn.RMSNorm) else pk.exposed(table, x, seen)
        given = repr((path, batch and layer.training))
        return table.make("norm", x, data=Norm(kind.__name__, weight, bias, given), shape=shape)
    if kind is nn.Embedding and weight is not None:
        return table.make("embedding", x, data=Lookup(weight, layer.embedding_dim), shape=shape)
    if kind.__module__ == "torch.nn.modules.pooling":
        found = pooled(table, kind.__name__, x, seen, getattr(layer, "output_size", None))
        return found or table.make(f"layer:{kind.__name__}", pk.exposed(table, x, seen), data=path, shape=shape)
    return None


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def _conv(weight: str, bias: str | None, sizes: tuple[int, ...], groups: int, turned: bool, given: str) -> Conv:
    out = sizes[1] * groups if turned else sizes[0]
    return Conv(weight, bias, sizes[2:], groups, out, math.prod(sizes) // out, given)


def pooled(table: Table, name: str, x: Term, seen: Shape, size: Any) -> Term | None:
    """Adaptive pooling to one position is a mean or a maximum."""
    name = name.lower().replace("_", "")
    dims = int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 0
    wanted = size if isinstance(size, (tuple, list)) else (size,) * dims
    if not name.startswith("adaptive") or not seen or not dims or any(s != 1 for s in wanted):
        return None
    over = tuple(range(-dims, 0))
    how = "mean" if "avg" in name else "amax"
    return table.make(how, pk.exposed(table, x, seen), data=(over, True), shape=(*seen[:-dims], *(1,) * dims))


# -- functions and operators ------------------------------------------------------------------------------------------


def _stored(value: Any) -> bool:
    return isinstance(value, Term) and value.op == "param"


def _named(value: Any) -> str | None:
    return value.data if _stored(value) else None


def conv(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    weight, bias = a["weight"], a.get("bias")
    if not _stored(weight) or weight.shape is None or not (bias is None or _stored(bias)):
        return None
    data = _conv(weight.data, _named(bias), weight.shape, a.get("groups", 1), a.get("transposed", False), _given(a))
    return table.make("conv", pk.exposed(table, x, seen), data=data, shape=shape)


def _norm(kind: str, whole: bool, several: bool) -> Callable[..., Term | None]:
    """`whole`: over other dimensions than the last; `several`: its operator returns statistics too."""

    def build(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
        if any(isinstance(a.get(k), Term) and not _stored(a[k]) for k in ("weight", "bias")):
            return None
        x = pk.exposed(table, x, seen) if whole else x
        data = Norm(kind, _named(a.get("weight")), _named(a.get("bias")), _given(a))
        found = table.make("norm", x, data=data, shape=shape or seen)
        return table.make("tuple", found, *(table.fresh("statistics") for _ in range(4))) if several else found

    return build


def _given(a: dict[str, Any]) -> str:
    """The arguments that are no tensors, in words."""
    return repr(sorted((k, v) for k, v in a.items() if not isinstance(v, Term)))


def _pool(name: str) -> Callable[..., Term | None]:
    def build(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
        found = pooled(table, name, x, seen, a.get("size"))
        indexed = found is not None and shape is None
        return table.make("tuple", found, table.fresh("index")) if indexed and found is not None else found

    return build


def _lookup(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    """F.embedding(ids, weight), and aten.embedding(weight, ids)."""
    ids, weight = (a["weight"], x) if _stored(x) else (x, a["weight"])
    if not _stored(weight) or not isinstance(ids, Term) or not weight.shape:
        return None
    return table.make("embedding", ids, data=Lookup(weight.data, weight.shape[-1]), shape=shape)


def _attention(several: bool) -> Callable[..., Term | None]:
    def build(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
        args = [t for t in (x, a["key"], a["value"], a.get("mask")) if isinstance(t, Term)]
        found = table.make("attention", *args, data=_given(a), shape=shape or seen)
        return table.make("tuple", found, *(table.fresh("statistics") for _ in range(8))) if several else found

    return build


def _best(name: str) -> Callable[..., Term | None]:
    """max(x, dim): the largest and where it stands."""

    def build(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
        dim, keep = a.get("dim"), bool(a.get("keepdim"))
        if not isinstance(dim, int) or isinstance(dim, bool) or not seen:
            return None
        dim = dim % len(seen) - len(seen)
        sizes = (*seen[:dim], *((1,) if keep else ()), *seen[len(seen) + dim + 1 :])
        whole = x if dim == -1 else pk.exposed(table, x, seen)
        most = table.make(name, whole, data=((dim,), keep), shape=sizes)
        return table.make("tuple", most, table.make(f"arg{name[1:]}", whole, data=(dim, keep), shape=sizes))

    return build


NORMED = ("shape", "weight", "bias", "eps")
BATCHED = ("mean", "var", "weight", "bias", "training", "momentum", "eps")
LAYERS: dict[str, tuple[Callable[..., Term | None], tuple[str, ...]]] = {  # function, names of its further arguments
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (conv, ("weight", "bias", "stride", "padding", "dilation", "groups"))),
    "convolution": (conv, ("weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")),
    "layer_norm": (_norm("LayerNorm", False, False), NORMED), "rms_norm": (_norm("RMSNorm", False, False), NORMED),
    "native_layer_norm": (_norm("LayerNorm", False, True), NORMED),
    "group_norm": (_norm("GroupNorm", True, False), NORMED),
    "native_group_norm": (_norm("GroupNorm", True, True), ("weight", "bias", "n", "c", "hxw", "shape")),
    "batch_norm": (_norm("BatchNorm", True, False), BATCHED), "instance_norm": (_norm("InstanceNorm", True, False), BATCHED),
    "_native_batch_norm_legit_no_training": (_norm("BatchNorm", True, True), ("weight", "bias", "mean", "var")),
    "_native_batch_norm_legit": (_norm("InstanceNorm", True, True), ("weight", "bias")),
    "embedding": (_lookup, ("weight",)),
    "scaled_dot_product_attention": (_attention(False), ("key", "value", "mask", "dropout", "causal", "scale")),
    "_scaled_dot_product_flash_attention_for_cpu": (_attention(True), ("key", "value", "dropout", "causal")),
    **{f"adaptive_{how}_pool{n}d": (_pool(f"adaptive_{how}_pool{n}d"), ("size",)) for how in ("avg", "max") for n in (1, 2, 3)},
    "max": (_best("amax"), ("dim", "keepdim")), "min": (_best("amin"), ("dim", "keepdim")),
}  # fmt: skip
ALSO = {"normalized_shape": "shape", "num_groups": "shape", "group": "shape", "attn_mask": "mask", "is_causal": "causal",
        "dropout_p": "dropout", "output_size": "size", "axis": "dim", "running_mean": "mean", "running_var": "var",
        "use_input_stats": "training"}  # fmt: skip


def called(
    table: Table, name: str, x: Any, seen: Shape, args: list[Any], kwargs: dict[str, Any], shape: Shape
) -> Term | None:
    """The term of a layer called as a function."""
    function, names = LAYERS[name]
    given = dict(zip(names, args, strict=False)) | {ALSO.get(k, k): v for k, v in kwargs.items()}
    return function(table, x, seen, given, shape) if isinstance(x, Term) else None
