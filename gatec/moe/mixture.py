"""The graph of a mixture: experts are blocks of the hidden units of an MLP's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional as F

from gatec.moe.pairs import Pairs, pairs_of
from gatec.site import Site


def mixture(site: Site, x: Any, act: Any, route: Any, router: Any, first: int = 0,
            stand_in: Any = None) -> Any:  # fmt: skip
    """What `experts` of the MLP at `site` make of x, each token's weighted by `route`, plus what is added after them once,
    and what `stand_in` gives for those that are not chosen.

    Expert e owns m rows of `up` (and `gate`), those from first + e*m on, and the same columns of `down`. The hidden units
    before `first` run for every token.
    """
    layers: dict[str, Any] = site.layers
    up, down = layers["up"], layers["down"]
    x = x.movedim(-1 - up.positions, -1) if up.positions else x
    flat = x.reshape(-1, up.in_features)
    routed = route(flat)
    pairs = pairs_of(routed, router)
    rows = pairs.gather(flat)
    inner = hidden(site, act, lambda layer: block_linear(layer, rows, pairs, router.experts, first))
    columns = down.weight_node()[:, first:] if first else down.weight_node()
    y = pairs.combine(
        pairs.linear(pairs.weighed(inner), columns.unflatten(1, (router.experts, -1)).permute(1, 0, 2)), flat
    )
    if first:
        inner = hidden(site, act, lambda layer: F.linear(flat, *(v[:first] for v in weights(layer) if v is not None)))
        y = y + F.linear(inner, down.weight_node()[:, :first])
    if stand_in is not None:
        y = y + stand_in(flat, routed)
    bias, y = down.bias_node(), y.unflatten(0, x.shape[:-1])
    y = y if bias is None else y + bias  # behind the view: what a module gives is better a tensor of its own
    return y.movedim(-1, -1 - up.positions) if up.positions else y


def hidden(site: Site, act: Any, project: Callable[[Any], Any]) -> Any:
    """The hidden layer, where `project` gives what a layer makes of the input."""
    layers: dict[str, Any] = site.layers
    gate = layers.get("gate")
    inner = act(project(gate)) * project(layers["up"]) if gate else act(project(layers["up"]))
    return F.dropout(inner, site.dropout, True) if site.dropout else inner


def weights(layer: Any) -> tuple[Any, Any]:
    return layer.weight_node(), layer.bias_node()


def block_linear(layer: Any, rows: Any, pairs: Pairs, experts: int, first: int) -> Any:
    """Each pair's row through its expert's rows of `layer`, which begin at `first`."""
    weight, bias = (v[first:] if first and v is not None else v for v in weights(layer))
    bias = None if bias is None else bias.unflatten(0, (experts, -1))
    return pairs.linear(rows, weight.unflatten(0, (experts, -1)), bias)
