"""The hidden units of a place in another order: rows of its layers, columns of `down`, in weights and in state dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.layers import attribute, rows
from gatec.match import Linear


@torch.no_grad()
def reordered(value: Tensor, spec: Linear, order: Tensor, *, name: str) -> Tensor:
    """A copy of a weight, or a bias, with its hidden units in `order`; outputs of every layer but `down`, its inputs."""
    new, order = value.clone(), order.to(value.device)
    if value.dim() < 2:
        part = new[spec.outputs]
        part.copy_(part[order])
    else:
        part = rows(new, spec)
        part.copy_(part[:, order] if name == "down" else part[order])
    return new


def moving(layers: dict[str, Linear]) -> Iterator[tuple[str, Linear, str]]:
    """(layer, spec, path of the tensor) for every tensor whose hidden units move: the bias of `down` stays."""
    for name, spec in layers.items():
        yield name, spec, spec.weight
        if spec.bias is not None and name != "down":
            yield name, spec, spec.bias


def permutation(order: Tensor) -> Tensor:
    """The order that puts units back; an error where some unit is there twice, or not at all."""
    back = torch.argsort(order)
    if not torch.equal(order[back], torch.arange(order.numel(), device=order.device)):
        raise GatecError("every hidden unit once", found=f"an order of {order.numel()} units that is no permutation")
    return back


@torch.no_grad()
def put_into(module: nn.Module, layers: dict[str, Linear], order: Tensor) -> None:
    """The hidden units of a module's layers in `order`, in place."""
    for name, spec, path in moving(layers):
        value = attribute(module, path)
        value.copy_(reordered(value, spec, order, name=name))


def put_back(module: nn.Module, layers: dict[str, Linear], order: Tensor) -> None:
    """Every hidden unit where it was before it was moved into `order`, with the values that it has now."""
    put_into(module, layers, permutation(order))


def put_in_order(state: dict[str, Any], prefix: str, layers: dict[str, Linear], order: Tensor) -> None:
    """The tensors of a state dict with their hidden units in `order`."""
    for name, spec, path in moving(layers):
        if prefix + path in state:
            state[prefix + path] = reordered(state[prefix + path], spec, order, name=name)
