"""What a worker of the sweep does: build one model, and prune it with gatec or with the peer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from gatec.bench.coverage.work import built, words
from gatec.bench.pruning import ours, peer
from gatec.bench.pruning.subjects import subjects

OURS = "gatec"
WAYS = {OURS: ours.ask, peer.PEER: peer.ask}
_warm: set[str] = set()


def work(task: tuple[str, str]) -> dict[str, Any]:
    """The answer to (model, who)."""
    spec, who = task
    if who == peer.PEER and not peer.version():
        return {"status": "not installed", "reason": f"pip install {peer.PEER}"}
    with built(subjects()[spec]) as found:
        if isinstance(found, dict):
            return found
        _warmed(who)
        try:
            return WAYS[who](*found)
        except Exception as error:
            return {"status": "raised", "reason": words(error)}


def _warmed(who: str) -> None:
    """The first use imports half of PyTorch; no model shall pay for that."""
    if who not in _warm:
        _warm.add(who)
        small = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        with suppress(Exception):
            WAYS[who](small, ((torch.ones(1, 2, 8),), {}))
