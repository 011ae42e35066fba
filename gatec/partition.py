"""Which hidden units of an MLP belong together: clusters of exactly equal size, the same for the same seed everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.errors import GatecError

ROUNDS = 40  # of price adjustment within one assignment
SKETCH = 512  # dimensions of a co-activation feature


def balanced_clusters(features: Tensor, clusters: int, *, seed: int = 0, iterations: int = 10) -> Tensor:
    """Labels [h] of `clusters` groups of exactly h / clusters rows each, by k-means with equal capacities.

    features: [h, f], finite. Each iteration assigns by similarity minus a price per cluster that rises while it is over
    full, then moves the least attached rows of what is still over full. Deterministic for a seed; the global random
    state is neither read nor written. Memory h x clusters.
    """
    height = features.shape[0]
    if clusters < 1 or height % clusters:
        fits = ", ".join(str(e) for e in range(1, min(height, 64) + 1) if height % e == 0)
        raise GatecError(f"a number of clusters that divides {height} units", found=str(clusters), hint=f"one of {fits}")
    if not bool(features.isfinite().all()):
        raise GatecError("finite features to cluster", found="NaN or infinity")
    x = features.detach().to("cpu", torch.float32 if features.dtype != torch.float64 else torch.float64)
    centres = _spread(x, clusters, torch.Generator().manual_seed(seed))
    best, lowest = torch.arange(height) % clusters, float("inf")
    for _ in range(iterations):
        labels = _assigned(x @ centres.T - centres.square().sum(1) / 2, height // clusters)
        centres = x[order(labels, clusters)].unflatten(0, (clusters, -1)).mean(1)
        inertia = float((x - centres[labels]).square().sum())
        if inertia >= lowest * (1 - 1e-6):
            break
        best, lowest = labels, inertia
    return best.to(features.device)


def order(labels: Tensor, clusters: int) -> Tensor:
    """The permutation that groups units cluster by cluster: W[order].view(clusters, h / clusters, d) are the experts."""
    counts = torch.bincount(labels, minlength=clusters)
    if counts.numel() != clusters or not bool((counts == counts[0]).all()):
        raise GatecError(f"labels of {clusters} equal clusters", found=f"sizes {counts.tolist()[:16]}")
    return torch.argsort(labels, stable=True)


def weight_features(rows: Sequence[Tensor]) -> Tensor:
    """[h, d] weights of one or more layers over the same hidden units as one [h, f] feature, each row of unit length."""
    wide = [r.detach().double() if r.dtype == torch.float64 else r.detach().float() for r in rows]
    return torch.cat([F.normalize(r, dim=1) for r in wide], dim=1)


class Coactivation:
    """Which hidden units fire together, gathered batch by batch: [h, 512] features from any number of tokens.

    A unit's feature is a random sketch of its activations over all tokens, of unit length, so that inner products
    estimate the cosine of two units' activation patterns (Zhang et al. 2022, co-activation graphs).
    """

    def __init__(self, units: int, *, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sketch = torch.zeros(units, SKETCH, dtype=torch.float64)
        self.tokens = 0

    def add(self, hidden: Tensor) -> None:
        """hidden: [tokens, h]."""
        flat = hidden.detach().reshape(-1, self.sketch.shape[0]).to("cpu", torch.float64)
        signs = torch.randint(0, 2, (flat.shape[0], SKETCH), generator=self.generator, dtype=torch.float64) * 2 - 1
        self.sketch += flat.T @ signs
        self.tokens += flat.shape[0]

    def features(self) -> Tensor:
        if not self.tokens:
            raise GatecError("calibration data with at least one token", found="none")
        return F.normalize(self.sketch, dim=1).float()


def _spread(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centres far from each other: the next one is drawn with the square of its distance (k-means++)."""
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    distance = (x - x[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        weight = distance.clamp_min(0).double()
        weight = weight if float(weight.sum()) > 0 else torch.ones_like(weight)
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
    return x[chosen]


def _assigned(gain: Tensor, room: int) -> Tensor:
    """Labels with exactly `room` rows for every column of `gain` [h, clusters], with a large total gain."""
    clusters = gain.shape[1]
    price, step = gain.new_zeros(clusters), float(gain.std()) if gain.numel() > 1 else 0.0
    for i in range(ROUNDS):
        labels = (gain - price).argmax(1)
        over = torch.bincount(labels, minlength=clusters) - room
        if not bool(over.any()):
            return labels
        price += step * (over / room) / (1 + i / 4)
    return _settled(gain - price, labels, room)


def _settled(gain: Tensor, labels: Tensor, room: int) -> Tensor:
    """Move the least attached rows out of over full clusters into the best ones that have room."""
    labels, clusters = labels.clone(), gain.shape[1]
    attached = gain.gather(1, labels[:, None])[:, 0]
    keep = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(clusters):
        rows = (labels == c).nonzero().flatten()
        keep[rows[attached[rows].argsort(descending=True, stable=True)[:room]]] = True
    loose = (~keep).nonzero().flatten()
    while loose.numel():
        free = room - torch.bincount(labels[keep], minlength=clusters)
        wanted = gain[loose].masked_fill(free <= 0, float("-inf")).argmax(1)
        for c in wanted.unique().tolist():
            rows = loose[wanted == c]
            rows = rows[gain[rows, c].argsort(descending=True, stable=True)[: int(free[c])]]
            labels[rows], keep[rows] = c, True
        loose = (~keep).nonzero().flatten()
    return labels
