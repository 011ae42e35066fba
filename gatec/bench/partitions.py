"""Hidden units dealt out to experts, beside k-means-constrained on the same weights: seconds of one core, and inertia."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gatec.partition import balanced_clusters, weight_features

SIZES = ((4096, 1024, 8), (4096, 1024, 32), (4096, 1024, 128), (28672, 8192, 64))
PEER = "k_means_constrained"
PEER_UNITS = 4096  # beyond it the peer takes hours


def partitions(sizes: tuple[tuple[int, int, int], ...] = SIZES, repeats: int = 3) -> list[dict[str, Any]]:
    """Rows by units, inputs, experts and weights: random, and planted in as many clusters with as much noise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(*size, planted, repeats) for size in sizes for planted in (False, True)]
    finally:
        torch.set_num_threads(threads)


def _row(units: int, width: int, experts: int, planted: bool, repeats: int) -> dict[str, Any]:
    weight = weights(units, width, experts, planted)
    ways: dict[str, Callable[[], Tensor]] = {
        "gatec": lambda: balanced_clusters(weight_features([weight]), experts).cpu(),
    }
    if importlib.util.find_spec(PEER) and units <= PEER_UNITS:
        ways[PEER] = lambda: _peer(weight, experts)
    row: dict[str, Any] = {
        "units": units,
        "inputs": width,
        "experts": experts,
        "weights": "planted" if planted else "random",
    }
    for name, (seconds, labels) in _timed(ways, repeats if units <= PEER_UNITS else 1).items():
        row |= {f"{name} s": round(seconds, 2), f"{name} inertia": round(inertia(weight, labels, experts), 1)}
    return {**row, "unclustered inertia": round(inertia(weight, torch.arange(units) // (units // experts), experts), 1)}


def weights(units: int, width: int, experts: int, planted: bool) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(units, width, generator=draw)
    if planted:
        cluster = torch.randperm(units, generator=draw) % experts
        weight += torch.randn(experts, width, generator=draw)[cluster]
    return weight


def inertia(weight: Tensor, labels: Tensor, experts: int) -> float:
    """Squared distances of the units' directions to the means of their experts."""
    unit = torch.nn.functional.normalize(weight, dim=1)
    means = torch.zeros(experts, weight.shape[1]).index_add_(0, labels, unit) * experts / len(weight)
    apart = [
        (u - means[of]).double().square().sum() for u, of in zip(unit.split(2048), labels.split(2048), strict=True)
    ]
    return float(sum(apart))


def _timed(ways: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, tuple[float, Tensor]]:
    """Median seconds of the processor, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            labels[name] = way()
            seconds[name].append(time.process_time() - start)
    return {name: (statistics.median(seconds[name]), labels[name]) for name in ways}


def _peer(weight: Tensor, experts: int) -> Tensor:
    each = len(weight) // experts
    rows = torch.nn.functional.normalize(weight, dim=1).numpy()
    found = importlib.import_module(PEER).KMeansConstrained(
        experts, size_min=each, size_max=each, n_init=1, random_state=0
    )
    return torch.from_numpy(found.fit(rows).labels_).long()
