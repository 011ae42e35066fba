"""Loss against active share: a small language model converted by gatec, beside what others make of the same model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gatec
from gatec.bench.experts import experts
from gatec.bench.small.model import BATCH, HELD_OUT_BATCHES, HIDDEN, LENGTH, held_out_loss, trained
from gatec.bench.small.peers import PEERS, Masked, dynamic, inputs_of, replaced
from gatec.bench.small.text import Text, standard_library

EXPERTS, CHOSEN = 16, (4, 8)
BATCHES = 32  # of calibration, from the text that the model was trained on
SCORER = 64  # half as wide as the peers' routers: a stand-in and this cost less
DYNAMIC = 0.40  # of ReLU's experts

Row = dict[str, Any]
Say = Callable[[str], Any]


def moe(only: str = "", seeds: int = 1, say: Say = lambda _: None) -> list[Row]:
    """Milliseconds first, then the quality of what runs in them."""
    return [*experts(), *quality(only, seeds, say=say)]


def quality(
    only: str = "", seeds: int = 1, *, source: Callable[[str, Text, int], nn.Module] | None = None,
    say: Say = lambda _: None,
) -> list[Row]:  # fmt: skip
    """A row for each model, way and active share: the held-out loss, and how far it is above the dense model's.

    only      a regular expression over relu, gelu, swiglu
    source    models by kind and seed, instead of training them
    """
    text, rows = standard_library(), []
    for seed in range(seeds):
        for kind in (kind for kind in HIDDEN if re.search(only, kind)):
            model = source(kind, text, seed) if source else trained(kind, text, seed=seed)
            for row in ways(model, kind, text):
                say(str(row))
                rows.append({"model": kind, "seed": seed, **row})
    return rows


def ways(model: nn.Module, kind: str, text: Text) -> list[Row]:
    """The dense model, gatec's and everybody else's."""
    tokens = [t[:, :-1] for t in text.batches(BATCHES, batch=BATCH, length=LENGTH, seed=777)]
    inputs, dense = inputs_of(model, tokens), held_out_loss(model, text)

    def row(way: str, made: nn.Module) -> Row:
        loss, active = measured(made, text)
        return {"way": way, "active": round(active, 3), "loss": round(loss, 4), "above dense": round(loss - dense, 4)}

    rows = [{"way": "dense", "active": 1.0, "loss": round(dense, 4), "above dense": 0.0}]
    for top_k in CHOSEN:
        rows.append(row("gatec", converted(model, tokens, top_k)))
        rows += [row(way, replaced(model, peer, inputs, EXPERTS, top_k)) for way, peer in PEERS.items()]
    if kind == "relu":
        nearest = round(DYNAMIC * EXPERTS)
        rows.append(row("gatec, dynamic", converted(model, tokens, nearest, router="dynamic", active=DYNAMIC)))
        rows.append(row("D2DMoE, dynamic", replaced(model, dynamic, inputs, EXPERTS, nearest)))
    return rows


def converted(
    model: nn.Module, tokens: list[Tensor], top_k: int, *, active: float | None = None, **options: Any
) -> nn.Module:
    """Split by what the tokens choose, with a router and a stand-in fitted to the same batches."""
    made = gatec.convert(
        model, "moe", experts=EXPERTS, top_k=top_k, hidden=SCORER, stand_in=True, partition="routing", inputs=tokens[0],
        calibration=tokens, **options,
    )  # fmt: skip
    return gatec.calibrate(made, tokens, steps=2000, active=active)


def measured(model: nn.Module, text: Text, batches: int = HELD_OUT_BATCHES) -> tuple[float, float]:
    """The held-out loss, and the share of experts that ran."""
    shares: list[float] = []

    def told(router: nn.Module, _: Any, routed: Any) -> None:
        assert isinstance(router, gatec.Router)
        shares.append(float((router.dense(routed) != 0).float().mean()))

    hooks = [m.register_forward_hook(told) for m in model.modules() if isinstance(m, gatec.Router)]
    loss = held_out_loss(model, text, batches)
    for hook in hooks:
        hook.remove()
    shares += [share for m in model.modules() if isinstance(m, Masked) for share in m.shares]
    return loss, float(torch.tensor(shares).mean())
