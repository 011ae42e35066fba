"""How long convert takes on Llamas of growing depth, beside torch.export of the same model in the same run."""

from __future__ import annotations

from typing import Any

import torch

from gatec.bench.clock import medians
from gatec.pipeline import convert
from gatec.zoo import load

DEPTHS = (4, 16, 32, 64, 128)
EXPORTED = (4, 16, 32)  # torch.export alone takes half a minute beyond


def conversion(depths: tuple[int, ...] = DEPTHS, repeats: int = 3) -> list[dict[str, Any]]:
    rows = []
    for layers in depths:
        model = load(f"transformers:llama?num_hidden_layers={layers}").eval()
        batch = {"input_ids": torch.arange(16).reshape(2, 8), "use_cache": False}
        ways: dict[str, Any] = {p: lambda p=p: convert(model, p, inputs=batch) for p in ("prune", "moe(experts=4,top_k=2)")}
        if layers in EXPORTED:
            ways["torch.export"] = lambda: torch.export.export(model, (), batch, strict=False)
        seconds = medians(ways, repeats if layers <= 32 else 1)
        row: dict[str, Any] = {"layers": layers, **{k: round(v, 3) for k, v in seconds.items()}}
        if "torch.export" in seconds:
            row["export / prune"] = round(seconds["torch.export"] / seconds["prune"], 1)
            row["export / moe"] = round(seconds["torch.export"] / seconds["moe(experts=4,top_k=2)"], 1)
        rows.append(row)
    return rows
