"""Other calls of the same model: another batch, another length or resolution, with a cache, one step further."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_flatten, tree_map

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def batches(inputs: Inputs) -> Iterator[Inputs]:
    """The call with one row more in every tensor that has the common first dimension."""
    tensors = [t for t in tree_flatten(inputs)[0] if isinstance(t, Tensor) and t.ndim]
    if tensors:
        common = Counter(t.shape[0] for t in tensors).most_common(1)[0][0]
        yield tree_map(lambda v: _taller(v) if isinstance(v, Tensor) and v.ndim and v.shape[0] == common else v, inputs)


def _taller(t: Tensor) -> Tensor:
    return torch.cat([t, t[-1:].roll(1, -1)])


def lengths(inputs: Inputs) -> Iterator[Inputs]:
    """Longer, larger, later: the ways to grow a call, the likeliest to be accepted first."""
    tensors = [t for t in tree_flatten(inputs)[0] if isinstance(t, Tensor)]
    if any(t.ndim >= 4 for t in tensors):
        for factor in (2.0, 1.5, 3.0, 0.5):
            yield tree_map(lambda v, f=factor: _scaled(v, f) if isinstance(v, Tensor) and v.ndim >= 4 else v, inputs)
    plain = [t for t in tensors if 2 <= t.ndim <= 3]
    for dim in (1, -1):
        sizes = Counter(t.shape[dim] for t in plain)
        for size, _ in sizes.most_common():
            yield tree_map(lambda v, d=dim, s=size: _longer(v, d, s), inputs)
    if plain:
        yield tree_map(lambda v: _longer(v, 1, None), inputs)


def _scaled(t: Tensor, factor: float) -> Tensor:
    size = [max(1, int(n * factor)) for n in t.shape[-2:]]
    flat: Tensor = t.flatten(0, -4)
    scaled: Tensor = interpolate(flat.to(torch.float32), size).to(t.dtype)
    out: Tensor = scaled.unflatten(0, t.shape[:-3])
    return out


def _longer(value: Any, dim: int, size: int | None) -> Any:
    if not isinstance(value, Tensor) or not 2 <= value.ndim <= 3 or (size is not None and value.shape[dim] != size):
        return value
    n = value.shape[dim]
    more = value.narrow(dim, 0, max(1, n // 2))
    return torch.cat([value, more], dim)


def cached(model: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """The same call with a cache asked for."""
    args, kwargs = inputs
    if "use_cache" in inspect.signature(model.forward).parameters:
        yield args, {**kwargs, "use_cache": True}


def step(inputs: Inputs, output: Any) -> Iterator[Inputs]:
    """The call that decodes one token more, with the cache that a cached call gave back."""
    args, kwargs = inputs
    cache = getattr(output, "past_key_values", None)
    name = next((n for n in ("decoder_input_ids", "input_ids") if n in kwargs), None)
    if cache is not None and name is not None:
        yield args, {**kwargs, name: kwargs[name][:, :1], "past_key_values": cache}
