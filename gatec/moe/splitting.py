"""How the hidden units of an MLP are dealt out to experts: by weights, by what they do on data, at random, or as given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.errors import GatecError
from gatec.match import Linear
from gatec.moe.dealing import dealt
from gatec.partition import Coactivation, balanced_clusters, order, weight_features
from gatec.rewrite.units import put_back, put_into
from gatec.site import Site

METHODS = ("weights", "coactivation", "routing", "importance", "random")
MARKED = 10  # units that a token marks as its most active, as CMoE does
FORMS = f"{', '.join(METHODS)}, a tensor of labels, or a dict from site names to these or to numbers of experts"


@dataclass(frozen=True)
class Split:
    """What is wanted at one site: `experts` equal parts, the first `shared` of which run for every token.

    how     a method, or a label for each hidden unit; None is coactivation where there is calibration data, else weights
    """

    how: str | Tensor | None
    experts: int
    shared: int = 0


def split_at(site: str, model: nn.Module, partition: Any, experts: int, shared: int) -> Split:
    """What `partition` says of a site: by its name, by the first regular expression that is found in it, or of all."""
    found = partition
    if isinstance(partition, Mapping):
        for text in partition:
            _leads_somewhere(text, model)
        names = [t for t in partition if t == site] or [t for t in partition if re.search(t, site)]
        found = partition[names[0]] if names else None
    if type(found) is int and found > 0:
        return Split(None, found, shared)
    if isinstance(found, (list, tuple)):
        found = torch.tensor(found)
    if found is None or isinstance(found, Tensor) or (isinstance(found, str) and found in METHODS):
        return Split(found, experts, shared)
    raise GatecError("a partition", found=f"{found!r:.60}", where=site, hint=FORMS)


def _leads_somewhere(text: str, model: nn.Module) -> None:
    try:
        met = any(re.search(text, name) for name, _ in model.named_modules())
    except re.error as e:
        raise GatecError("site names or regular expressions as keys of partition", found=f"{text!r}: {e}") from None
    if not met:
        raise GatecError(f"a module of {type(model).__name__} for each key of partition", found=f"none for {text!r}",
                         hint='gatec.why(model, "moe") names the sites')  # fmt: skip


def nearest(units: int, experts: int, least: int) -> int:
    """The number of experts, at least `least`, that divides the units and is nearest to the one wanted; the smaller of two."""
    return min((e for e in range(max(least, 1), units + 1) if units % e == 0), key=lambda e: abs(e - experts))


def labels_of(split: Split, rows: Sequence[Tensor], out: Tensor, hidden: Callable[[], Iterable[Tensor]] | None,
              seed: int, site: str, top_k: int = 1) -> Tensor:  # fmt: skip
    """The expert of each hidden unit: `rows` hold what goes into it, the columns of `out` what comes of it.

    hidden    activations [tokens, units] of calibration data, batch by batch
    """
    units, room = len(rows[0]), len(rows[0]) // split.experts
    if isinstance(split.how, Tensor):
        return _checked(split, units, site)
    if split.how == "random":
        return torch.from_numpy(np.random.default_rng(seed).permutation(units)) // room
    features, activity = _told_apart(split, rows, out, hidden, seed, site)
    labels = torch.full((units,), -1)
    common = torch.argsort(activity, descending=True, stable=True)[: split.shared * room]
    labels[common] = torch.arange(len(common)) // room
    rest, routed = labels < 0, split.experts - split.shared
    if split.how == "routing" and hidden:
        batches = (batch[:, rest.to(batch.device)] for batch in _finite(hidden(), site))
        labels[rest] = split.shared + dealt(batches, out[:, rest.to(out.device)], routed, top_k, seed=seed)
        return labels
    features = features[rest] if split.shared else features
    labels[rest] = split.shared + balanced_clusters(features, routed, seed=seed).cpu()
    return labels


def _told_apart(split: Split, rows: Sequence[Tensor], out: Tensor, hidden: Callable[[], Iterable[Tensor]] | None,
                seed: int, site: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What units are clustered by, and how active each is; by weights alone, how large they are."""
    how = split.how or ("coactivation" if hidden else "weights")
    if how == "weights":
        size = torch.stack([w.double().norm(dim=1) for w in (*rows, out.t())])
        return weight_features(rows, seed=seed), size.log().sum(0).cpu()
    if hidden is None:
        raise GatecError(f"calibration data for the partition {how!r}", found="none", where=site,
                         hint='convert(model, "moe", ..., calibration=[batches])')  # fmt: skip
    units = len(rows[0])
    seen = Coactivation(units, top=min(MARKED, units) if how == "importance" else 0, seed=seed)
    for batch in _finite(hidden(), site):
        seen.add(batch)
    return seen.features(), seen.rates()


def _finite(batches: Iterable[Tensor], site: str) -> Iterator[Tensor]:
    for batch in batches:
        if not batch.isfinite().all():
            worst = next(float(v) for v in batch.flatten() if not math.isfinite(v))
            raise GatecError("finite activations of the calibration data", found=str(worst), where=site)
        yield batch


def _checked(split: Split, units: int, site: str) -> Tensor:
    labels = split.how
    assert isinstance(labels, Tensor)
    if labels.is_floating_point() or labels.shape != (units,):
        raise GatecError(f"a whole-numbered label for each of {units} hidden units", where=site,
                         found=f"{str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}")  # fmt: skip
    try:
        order(labels.long(), split.experts)
    except GatecError as e:
        raise GatecError(e.wanted, found=e.found, where=site, hint=f"{split.experts} experts: experts=...") from None
    return labels.long().cpu()


@torch.no_grad()
def activations(site: Site, up: Any, act: Any, gate: Any, calibration: Any) -> Iterator[Tensor]:
    """The hidden layer [tokens, units] for what calibration data brings to this MLP."""
    for x in site.inputs(gate or up, calibration):
        x = x.movedim(-1 - up.positions, -1)
        hidden = act(F.linear(x, (gate or up).weight, (gate or up).bias))
        yield (hidden * F.linear(x, up.weight, up.bias) if gate else hidden).flatten(0, -2)


def reorder(site: Site, units: Tensor) -> None:
    """Bring the hidden units of an MLP into this order, in place."""
    layers = {name: spec for name, spec in site.match.layers.items() if isinstance(spec, Linear)}
    put_into(site.module, layers, units)
    site.undo.append(partial(put_back, site.module, layers, units))


def divisors(units: int, least: int = 1) -> str:
    """The numbers of equal parts, from `least` on and up to 64, that so many units have, in words."""
    return ", ".join(str(n) for n in range(least, min(units, 64) + 1) if units % n == 0)
