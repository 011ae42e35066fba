"""The graph of a mixture: experts are blocks of the hidden units of an MLP's own layers."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from gatec.moe.pairs import Pairs, pairs_of
from gatec.site import Site


def mixture(site: Site, x: Any, act: Any, route: Any, router: Any, always: int = 0) -> Any:
    """What the experts of the MLP at `site` make of x, each token's weighted by `route`, plus what is added after them once.

    Channels of x that stand before `up.positions` positions go back there. The first `always` hidden units serve every token.
    Behind them expert e owns rows e*m ... (e+1)*m of `up` (and `gate`),
    and the same columns of `down`.
    """
    layers: dict[str, Any] = site.layers
    up, gate, down = layers["up"], layers.get("gate"), layers["down"]
    x = x.movedim(-1 - up.positions, -1) if up.positions else x
    flat = x.reshape(-1, up.in_features)
    pairs = pairs_of(route(flat), router)
    rows = pairs.gather(flat)
    inner = act(block_linear(gate or up, rows, pairs, router.experts, always))
    if gate:
        inner = inner * block_linear(up, rows, pairs, router.experts, always)
    columns = down.weight_node()[:, always:] if always else down.weight_node()
    out = pairs.linear(dropped(site, inner), columns.unflatten(1, (router.experts, -1)).permute(1, 0, 2))
    y = pairs.combine(out, flat)
    if always:
        y = y + F.linear(dropped(site, head(flat, up, act, gate, always)), down.weight_node()[:, :always])
    bias = down.bias_node()
    y = (y if bias is None else y + bias).unflatten(0, x.shape[:-1])
    return y.movedim(-1, -1 - up.positions) if up.positions else y


def dropped(site: Site, inner: Any) -> Any:
    return F.dropout(inner, site.dropout, True) if site.dropout else inner


def head(flat: Any, up: Any, act: Any, gate: Any, units: int) -> Any:
    """The first hidden units, of every token."""

    def linear(layer: Any) -> Any:
        bias = layer.bias_node()
        return F.linear(flat, layer.weight_node()[:units], None if bias is None else bias[:units])

    return act(linear(gate)) * linear(up) if gate else act(linear(up))


def block_linear(layer: Any, rows: Any, pairs: Pairs, experts: int, first: int = 0) -> Any:
    """Each pair's row through its expert's rows of `layer`; the experts begin at row `first`."""
    weight, bias = layer.weight_node(), layer.bias_node()
    weight, bias = weight[first:] if first else weight, bias[first:] if first and bias is not None else bias
    return pairs.linear(
        rows,
        weight.unflatten(0, (experts, -1)),
        None if bias is None else bias.unflatten(0, (experts, -1)),
    )
