"""What fills the holes of a pattern, as a pass sees it: a linear layer with its weights, or a module by its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.capture import unit_of
from gatec.match import Linear, Part
from gatec.match.terms import join


@dataclass(frozen=True)
class Layer:
    """A linear layer at a site: callable inside `after`, with its weights as [out, in] views of the live parameters."""

    unit: nn.Module
    spec: Linear
    tracer: fx.proxy.GraphAppendingTracer | None = None

    @property
    def path(self) -> str:
        return self.spec.path

    @property
    def out_features(self) -> int:
        return self.spec.out

    @property
    def positions(self) -> int:
        """How many dimensions come after the features of its inputs: none but for a convolution."""
        return self.spec.positions

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def weight(self) -> Tensor:
        found: Tensor = rows(_fetch(self.unit, self.spec.weight), self.spec)
        return found

    @property
    def bias(self) -> Tensor | None:
        return None if self.spec.bias is None else _fetch(self.unit, self.spec.bias)[self.spec.outputs]

    def weight_node(self) -> Any:
        """The [out, in] weight inside the graph that is being written."""
        return rows(self._proxy(self.spec.weight), self.spec)

    def bias_node(self) -> Any:
        return None if self.spec.bias is None else self._proxy(self.spec.bias)[self.spec.outputs]

    def _proxy(self, path: str) -> Any:
        assert self.tracer is not None, "outside of `after` a layer has no graph"
        return value_of(self.tracer, path, _fetch(self.unit, path))


def rows(weight: Any, spec: Linear) -> Any:
    """The [out, in] view of the rows of `weight` that make the outputs of a layer."""
    if spec.positions:
        return weight.flatten(1)
    whole = weight.t() if spec.transposed else weight
    return whole[spec.outputs] if spec.packed else whole


def _fetch(unit: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found = getattr(unit.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True)
class Inner:
    """A branch, a block, an attention or a layer of some class at a site: the module by whose path it goes."""

    unit: nn.Module
    spec: Part
    tracer: fx.proxy.GraphAppendingTracer | None = None

    def parameter(self, name: str) -> Any:
        """A parameter of the module inside the graph that is being written; None where it has none of that name."""
        value = getattr(self.module, name)
        assert self.tracer is not None, "outside of `after` a layer has no graph"
        return None if value is None else value_of(self.tracer, join(self.path, name), value)

    @property
    def path(self) -> str:
        return self.spec.path

    @property
    def heads(self) -> int | None:
        """The number of heads of an attention, None where its values do not show it."""
        return self.spec.size

    @property
    def module(self) -> nn.Module:
        """The module; for a branch that ends in a bare parameter, the one that owns it."""
        found = attribute(self.unit, self.path) if self.path else self.unit
        return found if isinstance(found, nn.Module) else self.unit.get_submodule(self.path.rpartition(".")[0])

    @property
    def kind(self) -> type[nn.Module]:
        """The module's class as its author wrote it."""
        unit = unit_of(self.module)
        return unit.original if unit else type(self.module)

    @property
    def weight(self) -> Tensor:
        """A tensor whose dtype and device the module computes in."""
        own = [*self.module.parameters(), *self.unit.parameters()]
        return next((p for p in own if p.is_floating_point()), torch.empty(0))


def value_of(tracer: fx.proxy.GraphAppendingTracer, path: str, value: Tensor) -> fx.Proxy:
    node = tracer.graph.get_attr(path)
    node.meta["val"] = value
    return fx.Proxy(node, tracer)


def attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
