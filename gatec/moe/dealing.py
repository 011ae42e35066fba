"""Hidden units dealt out to experts so that the few experts a token chooses hold most of what it needs.

Two steps take turns, and neither can lose: every token chooses the `top_k` experts that hold most of its output, and the
units are dealt out anew, exactly balanced, where the tokens that need them have chosen. Where a unit is skipped its mean
stands in for it, so what counts is how far its output is from that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.errors import GatecError
from gatec.partition import activation_features, assign, at_least_float32, balanced_clusters, level

TOKENS, CELLS = 16384, 2**27  # how many tokens are looked at, and how many activations at most
CLUSTERED = 8192  # tokens by which the units are clustered at first
ROUNDS = 20
GAIN = 1e-5  # a round that gains less than this share is the last


def dealt(hidden: Iterable[Tensor], out: Tensor, experts: int, top_k: int, *, seed: int = 0) -> Tensor:
    """The expert of each hidden unit, from activations[tokens, units] batch by batch and the units' columns out[width, units]."""
    activations = sample(hidden, seed) * at_least_float32(out.detach()).norm(dim=0).to("cpu")
    labels = balanced_clusters(activation_features(activations[:CLUSTERED], seed=seed), experts, seed=seed)
    need = (activations - activations.mean(0)).square()
    held, best = -1.0, labels
    for _ in range(ROUNDS):
        mine = need @ F.one_hot(labels, experts).to(need)
        most, chosen = mine.topk(top_k, -1)
        now = float(most.double().sum())
        if now <= held * (1 + GAIN):
            break
        held, best = now, labels
        labels = balanced(torch.zeros_like(mine).scatter_(1, chosen, 1.0).t() @ need)
    return best


def balanced(gain: Tensor) -> Tensor:
    """The labels of the most gain[experts, units] in all, every label equally often."""
    costs = (gain.max() - gain).double().numpy()
    costs = np.rint(costs / (costs.max() or 1.0) * 2.0**30)
    return torch.from_numpy(assign(costs, level(costs, np.zeros(len(costs)))))


def sample(hidden: Iterable[Tensor], seed: int) -> Tensor:
    """Tokens drawn from all batches alike; a batch that comes later takes the places of some that came before."""
    draw = torch.Generator().manual_seed(seed)
    rows, keys = torch.empty(0, 0), torch.empty(0)
    for batch in hidden:
        batch = at_least_float32(batch.detach()).cpu()
        rows = torch.cat([rows, batch]) if len(rows) else batch
        keys = torch.cat([keys, torch.rand(len(batch), generator=draw)])
        best = keys.argsort()[: max(1, min(TOKENS, CELLS // rows.shape[1]))]
        rows, keys = rows[best], keys[best]
    if not len(rows):
        raise GatecError(
            "activations to deal units out by", found="no tokens", hint='calibration=[batches] of convert(model, "moe")'
        )
    return rows
