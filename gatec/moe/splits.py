"""A split MLP of a converted model: its router, and what each of its experts gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.layers import Layer
from gatec.moe.router import Router
from gatec.moe.standin import StandIn
from gatec.partition import at_least_float32
from gatec.rewrite.replay import Rewrite


@dataclass(frozen=True)
class Split:
    """A split MLP: its layers, its router, and what stands in for the experts that are not chosen."""

    name: str
    module: nn.Module
    rewrite: Rewrite

    @property
    def router(self) -> Router:
        found = self.module.get_submodule(self.rewrite.added["router"])
        assert isinstance(found, Router)
        return found

    @property
    def stand_in(self) -> StandIn | None:
        path = self.rewrite.added.get("stand_in")
        found = self.module.get_submodule(path) if path else None
        return found if isinstance(found, StandIn) else None

    @property
    def learns(self) -> bool:
        """Whether the router has one score per expert."""
        score, experts = getattr(self.router, "score", None), self.router.experts
        layers = [m for m in score.modules() if isinstance(m, nn.Linear)] if isinstance(score, nn.Module) else []
        return bool(layers) and not isinstance(score, nn.ModuleList) and layers[-1].out_features == experts

    @property
    def written(self) -> dict[str, Tensor]:
        """The tensors that fitting writes."""
        own = self.router.state_dict() if self.learns else {}
        found = {f"router.{k}": v for k, v in own.items() if k == "tau" or k.startswith("score.")}
        return found | ({f"stand_in.{k}": v for k, v in self.stand_in.state_dict().items()} if self.stand_in else {})

    @property
    def read(self) -> list[Tensor]:
        """The tensors that fitting reads."""
        own = [v for k, v in self.router.state_dict().items() if f"router.{k}" not in self.written]
        return [*self.weights, *own]

    @property
    def weights(self) -> list[Tensor]:
        layers = [Layer(self.module, spec) for spec in self.rewrite.linears.values()]
        return [v.detach() for layer in layers for v in (layer.weight, layer.bias) if v is not None]

    def outputs(self, x: Tensor) -> Tensor:
        """What each expert gives: [tokens, experts, out]."""
        inner, down = self.routed(x)
        return torch.einsum("nem,oem->neo", inner, down)

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """The experts' sum, each times its weight[tokens, experts]."""
        inner, down = self.routed(x)
        return (inner * weight.unsqueeze(-1)).flatten(1) @ down.flatten(1).t()

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The routed experts' hidden units [tokens, experts, units] and their columns of `down`."""
        layers = {name: Layer(self.module, spec) for name, spec in self.rewrite.linears.items()}
        act, up, down, gate = self.rewrite.acts["act"], layers["up"], layers["down"], layers.get("gate")
        inner = act(_linear(gate or up, x))
        inner = inner * _linear(up, x) if gate else inner
        experts, shared = self.router.experts, self.router.shared
        first = up.out_features // (experts + shared) * shared
        columns = at_least_float32(down.weight.detach())[:, first:]
        return inner[:, first:].unflatten(1, (experts, -1)), columns.unflatten(1, (experts, -1))


def _linear(layer: Layer, x: Tensor) -> Tensor:
    bias = layer.bias
    return F.linear(
        x, at_least_float32(layer.weight.detach()), None if bias is None else at_least_float32(bias.detach())
    )
