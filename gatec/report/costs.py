"""What each gated place costs: parameters, those of them that one token meets, and operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from gatec.capture import unit_of
from gatec.layers import Inner, Layer, attribute
from gatec.rewrite import Rewrite
from gatec.rewrite.splice import bound
from gatec.site import Site


@dataclass(frozen=True)
class Cost:
    """One gate at one site of the unit at `unit`.

    share       of its hidden layer that one token runs through
    parameters  of its layers and of what the gate added; `active` are those that one token meets
    flops       operations of their products for one token; None where a layer is not linear
    seconds     of one call of the unit, and of the same call without gatec; None where it was not measured
    usage       share of each expert in all choices of a measured run
    """

    gate: str
    site: str
    unit: str
    experts: int | None
    share: float
    parameters: int
    added: int
    active: int
    flops: int | None
    seconds: float | None = None
    seconds_before: float | None = None
    usage: tuple[float, ...] = ()

    def __str__(self) -> str:
        flops = "" if self.flops is None else f", {self.flops:,} flop per token"
        words = f"{self.share:.0%} of its hidden layer for a token: {self.active:,} of {self.parameters:,} parameters{flops}"
        words = f"{self.experts} experts, {words}" if self.experts else words
        return f"{self.gate:<8} {self.site or '(model)':<36} {words}{self.timed}"

    @property
    def timed(self) -> str:
        if self.seconds is None:
            return ""
        before = f", {self.seconds_before * 1e3:.3g} ms without gatec" if self.seconds_before is not None else ""
        return f"; {self.seconds * 1e3:.3g} ms{before}"

    def data(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def costs(model: nn.Module) -> tuple[Cost, ...]:
    """Of every gate in the model, as it is now."""
    units = [(p, m, u) for p, m in model.named_modules() if (u := unit_of(m))]
    return tuple(_cost(model, p, m, r) for p, m, u in units for r in u.edits if isinstance(r, Rewrite))


def _cost(model: nn.Module, path: str, module: nn.Module, rewrite: Rewrite) -> Cost:
    site = Site(model, path, module, rewrite.match, added=rewrite.added)
    gate = rewrite.gate
    share = gate.share(site, **bound(gate, gate.share, site, rewrite.options)) if gate.share else 1.0
    new = [attribute(module, p) for p in rewrite.added.values()]
    brought = _elements(_parameters(new))
    gated, always, products = _layers(site, {id(p) for p in _parameters(new)})
    added_products = _products(new)
    known = products is not None and added_products is not None
    flops = 2 * round((products or 0) * share + (added_products or 0)) if known else None
    experts = next((v.experts for v in new if isinstance(getattr(v, "experts", None), int)), None)
    return Cost(gate.name, rewrite.site_under(path), path, experts, float(share), gated + always + brought, brought,
                round(gated * share) + always + brought, flops)  # fmt: skip


def _layers(site: Site, brought: set[int]) -> tuple[int, int, int | None]:
    """Elements of which a token meets a share, elements that it always meets, and elements of products."""
    gated = always = products = 0
    known = True
    for name, layer in site.layers.items():
        if isinstance(layer, Layer):
            bias = 0 if layer.bias is None else layer.bias.numel()
            products += layer.weight.numel()
            gated += layer.weight.numel() + (bias if name != "down" else 0)
            always += bias if name == "down" else 0
        else:
            known = False
            always += _elements(p for p in _inner(site, layer) if id(p) not in brought)
    return gated, always, products if known else None


def _inner(site: Site, layer: Inner) -> Iterator[Tensor]:
    value = attribute(site.module, layer.path) if layer.path else site.module
    return iter(value.parameters() if isinstance(value, nn.Module) else [value])


def _parameters(values: list[Any]) -> list[Tensor]:
    return [p for v in values for p in (v.parameters() if isinstance(v, nn.Module) else [v])]


def _products(values: list[Any]) -> int | None:
    """Elements of the products in what a gate added: its linear layers."""
    leaves = [m for v in values if isinstance(v, nn.Module) for m in v.modules() if not any(m.children())]
    if any(next(m.parameters(False), None) is not None and not isinstance(m, nn.Linear) for m in leaves):
        return None
    return sum(m.weight.numel() for m in leaves if isinstance(m, nn.Linear))


def _elements(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)
