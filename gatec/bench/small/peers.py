"""What others do with the same trained model: the published ways of running a part of an MLP, as masks over hidden units."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.small.model import MLP, GatedMLP, Layer
from gatec.partition import assign, balanced_clusters, level, weight_features

Mlp = MLP | GatedMLP
Rule = Callable[[Tensor], Tensor]  # tokens to a mask [tokens, experts]
HIDDEN, STEPS, BATCH, RATE = 128, 300, 512, 1e-2  # of the router that predicts norms
SHARED, MARKED = 2, 10  # CMoE's shared experts, and the units that a token marks


class Masked(nn.Module):
    """An MLP of which a rule lets some experts through, and how much that was."""

    def __init__(self, mlp: Mlp, labels: Tensor, rule: Rule) -> None:
        super().__init__()
        self.mlp, self.labels, self.rule = mlp, labels, rule
        self.shares: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = self.rule(x)
        self.shares.append(float(mask[..., self.labels].mean()))
        out: Tensor = self.mlp.down(units(self.mlp, x) * mask[..., self.labels])
        return out


def units(mlp: Mlp, x: Tensor) -> Tensor:
    """The hidden units' values."""
    if isinstance(mlp, GatedMLP):
        gated: Tensor = F.silu(mlp.gate(x)) * mlp.up(x)
        return gated
    found: Tensor = mlp.act(mlp.up(x))
    return found


def rows(mlp: Mlp) -> list[Tensor]:
    """The weights that lead to each hidden unit."""
    layers = (mlp.gate, mlp.up) if isinstance(mlp, GatedMLP) else (mlp.up,)
    return [layer.weight.detach() for layer in layers]


def norms(mlp: Mlp, x: Tensor, labels: Tensor, experts: int) -> Tensor:
    """The length of each expert's output."""
    inner, down = units(mlp, x), mlp.down.weight
    return torch.stack([(inner[:, labels == e] @ down[:, labels == e].t()).norm(dim=-1) for e in range(experts)], -1)


def largest(scores: Tensor, top_k: int) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.topk(top_k, -1).indices, 1.0)


@dataclass(frozen=True)
class Setting:
    """One MLP to be reduced: the inputs that calibration data brings to it, and how many of its experts are to run."""

    mlp: Mlp
    x: Tensor
    experts: int
    top_k: int

    @property
    def width(self) -> int:
        return self.mlp.down.in_features


# -- the peers ----------------------------------------------------------------------------------------------------


def pruned(s: Setting) -> Masked:
    """The units of the largest mean output, for every token alike."""
    power = units(s.mlp, s.x).abs().mean(0) * s.mlp.down.weight.norm(dim=0)
    labels = torch.ones(s.width, dtype=torch.long)
    labels[power.topk(s.width * s.top_k // s.experts).indices] = 0
    return Masked(s.mlp, labels, lambda x: x.new_tensor([1.0, 0.0]).expand(*x.shape[:-1], 2))


def at_random(s: Setting) -> Masked:
    labels = torch.randperm(s.width, generator=torch.Generator().manual_seed(0)) % s.experts
    return by_norm(s, labels, lambda r: largest(r, s.top_k))


def moefication(s: Setting) -> Masked:
    return by_norm(s, clustered(s), lambda r: largest(r, s.top_k))


def oracle(s: Setting) -> Masked:
    """MoEfication's split with the true norms, which no router knows."""
    labels = clustered(s)
    return Masked(s.mlp, labels, lambda x: largest(norms(s.mlp, x.flatten(0, -2), labels, s.experts), s.top_k).unflatten(
        0, x.shape[:-1]))  # fmt: skip


def dynamic(s: Setting) -> Masked:
    """D2DMoE: experts whose predicted norm is near the largest one's, as many on average."""
    labels = clustered(s)
    router = norm_router(s, labels)
    predicted = router(s.x)
    part = predicted / predicted.amax(-1, keepdim=True).clamp_min(1e-9)
    least = float(part.flatten().quantile(1 - s.top_k / s.experts))

    def rule(x: Tensor) -> Tensor:
        found: Tensor = router(x)
        return (found >= least * found.amax(-1, keepdim=True)).to(x)

    return Masked(s.mlp, labels, rule)


def cmoe(s: Setting) -> Masked:
    """CMoE: the units that are marked most often are shared; the others are dealt out by whose tokens mark them, and a
    representative unit of each expert scores tokens."""
    room = s.width // s.experts
    unit = copy.deepcopy(s.mlp)
    with torch.no_grad():
        for weight in rows(unit):
            weight.copy_(F.normalize(weight, dim=1))
    marks = largest(units(unit, F.normalize(s.x, dim=-1)).abs(), MARKED).t()
    ranked = marks.mean(1).argsort(descending=True)
    shared, others = ranked[: SHARED * room], ranked[SHARED * room :].sort().values
    routed = s.experts - SHARED
    centres = marks[others[marks[others].mean(1).argsort(descending=True)[:routed]]]
    apart = centres.sum(1, keepdim=True) + marks[others].sum(1) - 2 * centres @ marks[others].t()
    costs = apart.double().numpy()
    own = torch.from_numpy(assign(costs, level(costs, np.zeros(routed))))
    labels = torch.empty(s.width, dtype=torch.long)
    labels[shared] = torch.arange(len(shared)) // room
    labels[others] = SHARED + own
    heads = torch.stack([others[own == e][apart[e, own == e].argmin()] for e in range(routed)])

    def rule(x: Tensor) -> Tensor:
        scores = units(unit, x)[..., heads].abs()
        return torch.cat([x.new_ones(*x.shape[:-1], SHARED), largest(scores, s.top_k - SHARED)], -1)

    return Masked(s.mlp, labels, rule)


PEERS: dict[str, Callable[[Setting], Masked]] = {
    "static pruning": pruned, "CMoE": cmoe, "random split": at_random, "MoEfication": moefication,
    "MoEfication, oracle": oracle,
}  # fmt: skip


# -- what they share ----------------------------------------------------------------------------------------------


def clustered(s: Setting) -> Tensor:
    """Balanced k-means of the rows of length one: by k-means-constrained, or ours where that is not installed."""
    features = weight_features(rows(s.mlp))
    try:
        from k_means_constrained import KMeansConstrained  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return balanced_clusters(features, s.experts)
    room = s.width // s.experts
    found = KMeansConstrained(s.experts, size_min=room, size_max=room, random_state=0).fit_predict(features.numpy())
    return torch.from_numpy(found).long()


def by_norm(s: Setting, labels: Tensor, rule: Rule) -> Masked:
    router = norm_router(s, labels)
    return Masked(s.mlp, labels, lambda x: rule(router(x)))


def norm_router(s: Setting, labels: Tensor) -> nn.Module:
    """An MLP that predicts each expert's norm."""
    with torch.no_grad():
        wanted = norms(s.mlp, s.x, labels, s.experts)
    torch.manual_seed(0)
    router = nn.Sequential(nn.Linear(s.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, s.experts))
    optimizer = torch.optim.Adam(router.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            at = torch.randint(len(s.x), (BATCH,))
            optimizer.zero_grad()
            F.mse_loss(router(s.x[at]), wanted[at]).backward()
            optimizer.step()
            schedule.step()
    return router.requires_grad_(False)


def replaced(
    model: nn.Module, peer: Callable[[Setting], Masked], inputs: list[Tensor], experts: int, top_k: int
) -> nn.Module:
    """A copy of the model whose MLPs are a peer's."""
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    for layer, x in zip(layers, inputs, strict=True):
        with torch.no_grad():
            assert isinstance(layer.mlp, MLP | GatedMLP)
            layer.mlp = peer(Setting(layer.mlp, x, experts, top_k))
    return model


@torch.no_grad()
def inputs_of(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """What flows into each MLP: [tokens, width]."""
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [layer.mlp.register_forward_pre_hook(lambda _, a, mine=mine: mine.append(a[0].flatten(0, -2)))
             for layer, mine in zip(layers, seen, strict=True)]  # fmt: skip
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(mine) for mine in seen]
