"""gatec on one model: its groups, half of every group's slots closed at random, and what compaction makes of that."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gatec import GatecError, channel_gates, close, compact, groups, prune, report
from gatec.bench.coverage.entry import Inputs
from gatec.bench.coverage.work import words
from gatec.bench.pruning.exact import drift, outputs, shaken
from gatec.program import doubled
from gatec.pruning.exact import exactly

EXACT = 1e-12  # relative, in float64
STAY = re.compile(r"(\d+) closed ones stay, in zeros: (.*)")
REASON = 120  # letters of a reason that a row keeps


def ask(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """status: exact, moved, raised, or refused where nothing can be pruned; and what `groups` says of the model."""
    found, row = _grouped(model, inputs)
    kinds = sorted({group.kind for group in found if not group.refused})
    if not kinds:
        return row | {"status": "refused", "reason": "; ".join(sorted(set(row["refused"].values())))[:REASON]}
    model, inputs = shaken(model).double(), doubled(inputs)
    try:
        row |= compacted(model, inputs)
    except Exception as error:  # a model may stop us in any words: that is a result
        row |= {"status": "raised", "reason": words(error)}
    if row["status"] != "exact" and len(kinds) > 1:
        row["kinds"] = {kind: _alone(model, inputs, kind) for kind in kinds}
    return row


def _grouped(model: nn.Module, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
    begun = time.process_time()
    found = groups(model, inputs)
    seconds = time.process_time() - begun
    refused = {group.name: group.refused for group in found if group.refused}
    return found, {"seconds": round(seconds, 3), "parameters": sum(p.numel() for p in model.parameters()),
                   "groups": len(found), "covered": round(found.covered, 4), "refused": refused}  # fmt: skip


def compacted(model: nn.Module, inputs: Inputs, kinds: Sequence[str] | None = None, seed: int = 0) -> dict[str, Any]:
    """Gates closed at random, removed, and removed once more."""
    with exactly():  # some operators have no float64
        gated = prune(model, inputs, kinds=kinds)
        closed = halved(gated, seed)
        small = compact(gated, inputs)
    wanted = outputs(gated, inputs)
    apart = drift(wanted, outputs(small, inputs))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    stays = staying(edit.why for edit in report(small).edits)
    return {"status": "exact" if apart <= EXACT else "moved", "drift": apart, "closed": closed,
            "removed": round(1 - sum(stays.values()) / max(closed, 1), 3), "stays": stays,
            "parameters left": round(sizes[0] / sizes[1], 3), "again": again(small, inputs)}  # fmt: skip


def halved(gated: nn.Module, seed: int = 0) -> int:
    """Close half of every gate's slots, drawn at random; how many that are."""
    drawn = torch.Generator().manual_seed(seed)
    slots = {
        name: torch.randperm(gate.size, generator=drawn)[: gate.size // 2]
        for name, gate in channel_gates(gated).items()
    }
    close(gated, slots)
    return sum(map(len, slots.values()))


def staying(said: Iterable[str]) -> dict[str, int]:
    """How many closed slots were not removed, by the reason that the report gives."""
    found: Counter[str] = Counter()
    for sentence in said:
        if stay := STAY.search(sentence):
            found[stay[2][:REASON]] += int(stay[1])
    return dict(found)


def again(small: nn.Module, inputs: Inputs) -> str:
    """What compacting once more comes to."""
    try:
        other = compact(small, inputs).state_dict()
    except GatecError as error:
        return words(error)
    same = {name: t.shape for name, t in other.items()} == {name: t.shape for name, t in small.state_dict().items()}
    return "the same" if same else "other shapes"


def _alone(model: nn.Module, inputs: Inputs, kind: str) -> str:
    """What gates of one kind alone come to."""
    try:
        return f"{compacted(model, inputs, [kind])['drift']:.1e}"
    except Exception as error:
        return words(error)
