"""Mixture of experts: split the hidden units of an MLP into equal experts, and let a router pick for every token.

    before    y = down(hidden(x))
    after     y = sum of down_e(hidden_e(x)) over the top_k experts e of softmax(router(x)), plus down's bias once

Born: the experts partition the hidden units, so that with all of them on the sum is the dense layer to rounding. The
units are only reordered in place: parameter names stay, expert e owns rows e*m ... (e+1)*m of up (and gate), and the same
columns of down. A chosen expert has weight 1 with the gradient of its score, so the router trains from the first step.
`stand_in` adds something cheap for the experts that are not chosen; `gatec.calibrate` fits it and the router to data.
Zhang et al. 2022, "MoEfication", https://arxiv.org/abs/2110.01786
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec import (
    Case,
    Gate,
    GatecError,
    StandIn,
    mixture,
    order,
    places,
    router_named,
    splitting,
)


def check(
    site,
    up,
    *,
    experts: int = 8,
    top_k: int = 2,
    shared: int = 0,
    router: str = "softmax",
    partition=None,
    nearest: bool = False,
    stand_in: bool = False,
) -> None:
    router_named(router)
    if not all(isinstance(n, int) for n in (experts, top_k, shared)) or not 0 <= shared <= experts - top_k < experts:
        raise GatecError(
            "1 <= top_k <= experts - shared",
            found=f"experts={experts}, top_k={top_k}, shared={shared}",
            hint="moe(experts=8,top_k=2)",
        )
    split = split_of(site, up, partition, experts, top_k, shared, nearest)
    width = up.out_features
    if split.experts < top_k + shared or width % split.experts:
        fits = splitting.divisors(width, top_k + shared)
        site.refuse(f"{split.experts} experts do not divide its {width} hidden units; these do: {fits}")
    for name in site.match.layers:
        site.movable(name)


def split_of(site, up, partition, experts: int, top_k: int, shared: int, nearest: bool) -> splitting.Split:
    """How this site is split; where the number of experts does not fit, into the nearest that does, if that is allowed."""
    split = splitting.split_at(site.name, site.root, partition, experts, shared)
    if not nearest or up.out_features % split.experts == 0 or up.out_features < top_k + shared:
        return split
    found = splitting.nearest(up.out_features, split.experts, top_k + shared)
    site.note(f"{found} experts, because {split.experts} do not divide its {up.out_features} hidden units")
    return replace(split, experts=found)


def after(
    site, x, up, act, down, *, experts: int = 8, top_k: int = 2, shared: int = 0, router: str = "softmax",
    hidden: int = 0, tasks: int = 1, partition=None, nearest: bool = False, stand_in: bool = False,
):  # fmt: skip
    def new():
        split = split_of(site, up, partition, experts, top_k, shared, nearest)
        return new_router(site, up, router, split.experts - shared, top_k, shared, hidden, tasks)

    route = site.add("router", new, near=up)
    made = site.added_value("router")
    always = up.out_features // (made.experts + shared) * shared
    absent = site.add("stand_in", lambda: new_stand_in(site, up, down), near=up) if stand_in else None
    return mixture(site, x, act, route, made, always, absent)


def new_router(site, up, kind: str, experts: int, top_k: int, shared: int, hidden: int, tasks: int):
    like = site.like(up)
    router = router_named(kind)(up.in_features, experts, top_k, hidden=hidden, tasks=tasks, **like)
    router.shared = shared
    router.register_buffer("order", torch.arange(up.out_features, device=like["device"]))
    return router


def new_stand_in(site, up, down):
    """For the experts that are not chosen: nothing until `gatec.calibrate` has fitted it."""
    router = site.added_value("router")
    return StandIn(up.in_features, down.out_features, router.experts, fixed=router.fixed, **site.like(up))


def birth(
    site,
    up,
    act,
    down,
    gate=None,
    *,
    experts: int = 8,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    partition=None,
    calibration=None,
) -> None:
    """Deal out the hidden units, reorder them in place, and point each router row at its expert's mean weight row."""
    rows = [layer.weight.detach() for layer in (gate, up) if layer]
    if not all(bool(r.isfinite().all()) for r in rows):
        site.refuse("its weights hold NaN or infinity")
    router = site.added_value("router")
    split = replace(
        splitting.split_at(site.name, site.root, partition, experts, shared), experts=router.experts + shared
    )
    seen = None if calibration is None else lambda: splitting.activations(site, up, act, gate, calibration)
    labels = splitting.labels_of(split, rows, down.weight.detach(), seen, seed, site.name, top_k)
    units = order(labels, split.experts).to(up.weight.device)
    splitting.reorder(site, units)
    with torch.no_grad():
        router.order.copy_(units)
        directions = F.normalize((gate or up).weight.float(), dim=1).unflatten(0, (split.experts, -1))
        router.start(directions[shared:].mean(1))
    if router.kept:
        site.note(router.kept)


def moved(site) -> Tensor:
    return site.added_value("router").order


def share(site) -> float:
    router = site.added_value("router")
    return (router.top_k + router.shared) / (router.experts + router.shared)


class GatedMLP(nn.Module):
    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32, bias=not packed), nn.Linear(16, 8)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.again.weight = self.down.weight

    def forward(self, x):
        return self.down(F.relu(self.up(x))) + self.again(x.repeat(1, 2))


def parametrised() -> nn.Module:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def broken() -> nn.Module:
    model = mlp()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
ALL = {"experts": 4, "top_k": 4}
SHARED = {"experts": 4, "top_k": 3, "shared": 1}
GATE = Gate(
    before=(places.dense, places.gated, places.pointwise), after=after, check=check, birth=birth, moved=moved, share=share,
    born="drifts: every token sees only its top_k experts",
    cases=(
        Case("dense", mlp, X, options=ALL),
        Case("gated, packed", GatedMLP, X, options=ALL),
        Case("no bias", lambda: GatedMLP(True), X, options=ALL),
        Case("shared expert, gated", GatedMLP, X, options=SHARED),
        Case("by labels", mlp, X, options={**ALL, "partition": [n % 4 for n in range(16)]}),
        Case("the nearest number", mlp, X, options={"experts": 5, "top_k": 4, "nearest": True}),
        Case("layer norm inside", normed, X, refuses="LayerNorm at 2", put=0, options=ALL),
        Case("stand-in", mlp, X, options={**ALL, "stand_in": True}),
        Case("seven do not divide sixteen", mlp, X, refuses="7 experts do not divide its 16 hidden units",
             options={"experts": 7}),
        Case("tied weights", Tied, X, refuses="is shared with", options=ALL),
        Case("weight norm", parametrised, X, refuses="a parametrization", options=ALL),
        Case("NaN weights", broken, X, refuses="NaN or infinity", options=ALL),
    ),
)  # fmt: skip
