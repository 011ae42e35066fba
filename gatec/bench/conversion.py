"""How long convert takes on Llamas of growing depth, beside torch.export of the same model in the same run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gatec.bench.clock import medians
from gatec.pipeline import convert
from gatec.zoo import load

DEPTHS = (4, 16, 32, 64, 128)
PASSES = ("prune", "moe(experts=4,top_k=2)")
EXPORTED = (4, 16, 32)  # torch.export alone takes half a minute beyond


def conversion(depths: tuple[int, ...] = DEPTHS, repeats: int = 3) -> list[dict[str, Any]]:
    """Seconds by depth for each pass, and how many times longer torch.export takes."""
    return [_row(layers, repeats if layers <= 32 else 1) for layers in depths]


def _row(layers: int, repeats: int) -> dict[str, Any]:
    model = load(f"transformers:llama?num_hidden_layers={layers}").eval()
    batch = {"input_ids": torch.arange(16).reshape(2, 8), "use_cache": False}
    ways: dict[str, Any] = {p: partial(convert, model, p, inputs=batch) for p in PASSES}
    if layers in EXPORTED:
        ways["torch.export"] = partial(torch.export.export, model, (), batch, strict=False)
    seconds = medians(ways, repeats)
    row: dict[str, Any] = {"layers": layers, **{k: round(v, 3) for k, v in seconds.items()}}
    if "torch.export" in seconds:
        row |= {f"export / {p.partition('(')[0]}": round(seconds["torch.export"] / seconds[p], 1) for p in PASSES}
    return row
