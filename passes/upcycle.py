"""Upcycling: copies of an MLP as experts, whose weights sum to one for every token.

    before    y = down(hidden(x))
    after     y = sum of w_e * down_e(hidden_e(x)) over the top_k copies e of router(x), plus down's bias once

Born: all copies are the MLP, so that the sum is the MLP to rounding whatever the router says. Copies lie beside each other
under the names that were there: copy e owns rows e*h ... (e+1)*h of up (and gate), and the same columns of down. With
`shards` every copy is cut into as many experts, whose router rows start the same, so that whole copies are chosen; only
down is scaled for it. Dense checkpoints still load: they are copied likewise.
Komatsuzaki et al. 2022, "Sparse Upcycling", https://arxiv.org/abs/2212.05055; shards: He et al. 2024,
https://arxiv.org/abs/2410.07524; noise: Nakamura et al. 2025, "Drop-Upcycling", https://arxiv.org/abs/2502.19261
"""

import torch
from torch import nn
from torch.nn import functional as F

from gatec import Case, Gate, copies, mixture, places, router_named

SCALE = 0.02  # deviation of the first router rows


def check(
    site, up, *, experts: int = 8, top_k: int = 2, shards: int = 1, noise: float = 0.0, router: str = "softmax"
) -> None:
    if not router_named(router).fixed:
        site.refuse(f"the weights of the router {router} do not sum to one for every token")
    if router == "noisy" and shards > 1:
        site.refuse("the noise on the scores of that router would part the shards of a copy in training")
    copies.check(experts, top_k, shards, up.out_features, noise, "upcycle(experts=8,top_k=2)")
    for name in site.match.layers:
        site.movable(name)
    one = sum(layer.weight.numel() for layer in site.layers.values())
    site.note(f"{one:,} weights are {experts * one:,}, {top_k * one:,} of them for a token")


def after(
    site, x, up, act, *, experts: int = 8, top_k: int = 2, shards: int = 1, router: str = "softmax", tasks: int = 1
):
    replayed = "router" in site.added
    route = site.add("router", lambda: new_router(site, up, router, experts * shards, top_k * shards, tasks), near=up)
    if not replayed:
        site.repeat(experts, float(shards))
    return mixture(site, x, act, route, site.added_value("router"))


def new_router(site, up, kind: str, experts: int, top_k: int, tasks: int) -> nn.Module:
    return router_named(kind)(up.in_features, experts, top_k, whole=False, tasks=tasks, **site.like(up))


def birth(site, *, experts: int = 8, shards: int = 1, seed: int = 0, noise: float = 0.0) -> None:
    """Small random scores, the same for all shards of a copy; with `noise` that share of each expert's units is drawn anew."""
    layers, draw = site.layers, copies.seeded(seed, site.path, *(k.path for k in site.match.layers.values()))
    with torch.no_grad():
        for score in (m for m in site.added_value("router").modules() if isinstance(m, nn.Linear)):
            score.weight.copy_(copies.alike(experts, shards, score.in_features, SCALE, draw))
        if noise:
            rows = [layers[n].weight.unflatten(0, (experts * shards, -1)) for n in ("gate", "up") if n in layers]
            columns = layers["down"].weight.unflatten(1, (experts * shards, -1)).permute(1, 2, 0)
            copies.redrawn([*rows, columns], noise, draw)


def moved(site) -> None:
    """No unit has another place among its copy's."""


def share(site) -> float:
    router = site.added_value("router")
    return router.top_k / router.experts


def drifts(*, noise: float = 0.0) -> str:
    return (
        f"{noise:.0%} of the hidden units of every expert are drawn anew"
        if noise
        else "a weighted sum of equals rounds"
    )


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


class Numbers(nn.Module):
    """Its forward counts on sixteen hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(16, 8)

    def forward(self, x):
        a, b = self.up(x).split(16, -1)
        return self.down(F.silu(a) * b)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
FEW = {"experts": 3, "top_k": 2}
GATE = Gate(
    before=(places.dense, places.gated), after=after, check=check, birth=birth, drifts=drifts, moved=moved, share=share,
    tries={"experts": 2, "top_k": 1}, born="drifts: a weighted sum of equals rounds",
    cases=(
        Case("dense", mlp, X, options=FEW),
        Case("gated, packed", GatedMLP, X, options=FEW),
        Case("no bias, shards", lambda: GatedMLP(True), X, options={**FEW, "shards": 4}),
        Case("sigmoid router", mlp, X, options={**FEW, "router": "sigmoid", "shards": 2}),
        Case("tokens that may go nowhere", mlp, X, refuses="do not sum to one for every token",
             options={**FEW, "router": "expert_choice"}),
        Case("noise on the scores of shards", mlp, X, refuses="would part the shards of a copy in training",
             options={**FEW, "router": "noisy", "shards": 2}),
        Case("tied weights", Tied, X, refuses="is shared with", options=FEW),
        Case("sizes in the forward", Numbers, X, refuses="does not hold for a wider hidden layer", options=FEW),
    ),
)  # fmt: skip
