"""The graph of a mixture: experts are blocks of the hidden units of an MLP's own layers."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from gatec.moe.pairs import Pairs, pairs_of
from gatec.site import Site


def mixture(site: Site, x: Any, act: Any, route: Any, router: Any) -> Any:
    """What `experts` of the MLP at `site` make of x, each token's weighted by `route`, plus what is added after them once.

    Expert e owns rows e*m ... (e+1)*m of `up` (and `gate`), and the same columns of `down`.
    """
    layers: dict[str, Any] = site.layers
    up, gate, down = layers["up"], layers.get("gate"), layers["down"]
    flat = x.reshape(-1, up.in_features)
    pairs = pairs_of(route(flat), router)
    rows = pairs.gather(flat)
    inner = act(block_linear(gate or up, rows, pairs, router.experts))
    if gate:
        inner = inner * block_linear(up, rows, pairs, router.experts)
    if site.dropout:
        inner = F.dropout(inner, site.dropout, True)
    columns = down.weight_node().unflatten(1, (router.experts, -1)).permute(1, 0, 2)
    y = pairs.combine(pairs.linear(inner, columns), flat)
    bias = down.bias_node()
    return (y if bias is None else y + bias).unflatten(0, x.shape[:-1])


def block_linear(layer: Any, rows: Any, pairs: Pairs, experts: int) -> Any:
    """Each pair's row through its expert's rows of `layer`."""
    bias = layer.bias_node()
    bias = None if bias is None else bias.unflatten(0, (experts, -1))
    return pairs.linear(rows, layer.weight_node().unflatten(0, (experts, -1)), bias)
