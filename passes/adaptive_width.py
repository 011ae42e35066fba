"""Adaptive width: every token runs as many of the first blocks of an MLP's hidden layer as it needs.

    before    y = down(hidden(x))
    after     y = sum of the first w(x) of `learners` equal blocks of hidden units, plus down's bias once

Born neutral to rounding: w starts at its largest. Units are reordered in place by what they contribute, the largest first,
|h| * ||column of down|| on calibration data, or by the weights alone. `gatec.losses(model, width=...)` asks for less.
Wojcik et al. 2023, "Adaptive Computation Modules", https://arxiv.org/abs/2312.10193
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, GatecError, mixture, places, router_named, splitting


def check(site, up, *, learners: int = 4) -> None:
    width = up.out_features
    if not isinstance(learners, int) or learners < 2:
        raise GatecError("at least two learners", found=f"learners={learners}", hint="adaptive_width(learners=4)")
    if width % learners:
        fits = splitting.divisors(width, 2)
        site.refuse(f"{learners} learners do not divide its {width} hidden units; these do: {fits}")
    for name in site.match.layers:
        site.movable(name)


def after(site, x, up, act, *, learners: int = 4, hidden: int = 0):
    def new() -> nn.Module:
        made = router_named("width")(up.in_features, learners, learners, hidden=hidden, **site.like(up))
        made.register_buffer("order", torch.arange(up.out_features, device=up.weight.device))
        return made

    route = site.add("router", new, near=up)
    return mixture(site, x, act, route, site.added_value("router"))


@torch.no_grad()
def birth(site, up, act, down, gate=None, *, calibration=None) -> None:
    worth = down.weight.norm(dim=0)
    if calibration is None:
        worth = worth * up.weight.norm(dim=1) * (gate.weight.norm(dim=1) if gate else 1)
    else:
        worth = worth * torch.cat([h.abs() for h in splitting.activations(site, up, act, gate, calibration)]).mean(0)
    if not worth.isfinite().all():
        site.refuse("its weights, or what it computes of the calibration data, hold NaN or infinity")
    units = worth.argsort(descending=True, stable=True)
    splitting.reorder(site, units)
    site.added_value("router").order.copy_(units)


def moved(site) -> Tensor:
    return site.added_value("router").order


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(a, b) for a, b in ((8, 12), (8, 12), (12, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def broken() -> nn.Module:
    model = mlp()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.dense, places.gated), after=after, check=check, birth=birth, moved=moved,
    born="drifts: sums in another order",
    cases=(
        Case("dense", mlp, X),
        Case("gated", GatedMLP, X, options={"learners": 3}),
        Case("an MLP decides", mlp, X, options={"hidden": 4}),
        Case("five do not divide sixteen", mlp, X, refuses="5 learners do not divide its 16 hidden units",
             options={"learners": 5}),
        Case("NaN weights", broken, X, refuses="NaN or infinity"),
    ),
)  # fmt: skip
