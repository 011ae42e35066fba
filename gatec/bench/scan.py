"""A loop over time as its author wrote it beside the same module after gatec.reroll, forward and with gradients."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from gatec.bench.clock import medians
from gatec.bench.subjects import Loop
from gatec.rerolling import reroll

LENGTHS = (64, 256, 1024, 4096)
SIZES = ((1, 64), (4, 256))  # batch and channels: launches decide in the first, memory in the second
SHORT = 8  # steps of the example that the loop is captured on
WITH_GRADIENTS = 1024  # above it the loop's backward takes minutes


def scan(lengths: tuple[int, ...] = LENGTHS, repeats: int = 15) -> list[dict[str, Any]]:
    """Rows by size and length: milliseconds of the loop and of the recurrence, their ratio, seconds of the conversion.

    A pass reads both operands once and writes as much: no recurrence is faster.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, rows = Loop(1, SHORT, 8), []
    reroll(model, _inputs(1, SHORT, 8, device))  # what is imported and cached once is not counted
    for batch, width in SIZES:
        start = time.perf_counter()
        rolled = reroll(model, _inputs(batch, SHORT, width, device))
        convert = {"convert s": round(time.perf_counter() - start, 2)}
        size = {"batch": batch, "width": width}
        rows += [{**size, **_row(model, rolled, _inputs(batch, t, width, device), repeats), **convert} for t in lengths]
    return rows


def _inputs(batch: int, steps: int, width: int, device: str) -> list[Tensor]:
    return [torch.rand(batch, steps, width, device=device), torch.randn(batch, steps, width, device=device)]


def _row(model: nn.Module, rolled: nn.Module, inputs: list[Tensor], repeats: int) -> dict[str, Any]:
    with torch.no_grad():
        ahead = medians({"loop": lambda: ran(model, inputs), "reroll": lambda: ran(rolled, inputs),
                         "pass": lambda: torch.addcmul(inputs[1], *inputs)}, repeats)  # fmt: skip
    row = {
        "steps": inputs[0].shape[1],
        **columns(ahead, ""),
        "reroll / pass": round(ahead["reroll"] / ahead["pass"], 1),
    }
    return row | (with_gradients(model, rolled, inputs, repeats) if inputs[0].shape[1] <= WITH_GRADIENTS else {})


def with_gradients(model: nn.Module, rolled: nn.Module, inputs: list[Tensor], repeats: int) -> dict[str, Any]:
    for x in inputs:
        x.requires_grad_()
    both = {"loop": lambda: ran(model, inputs, True), "reroll": lambda: ran(rolled, inputs, True)}
    return columns(medians(both, max(repeats // 2, 1)), "f+b ")


def columns(seconds: dict[str, float], prefix: str) -> dict[str, Any]:
    found = {f"{prefix}{name} ms": round(s * 1e3, 3) for name, s in seconds.items()}
    return {**found, f"{prefix}loop / reroll": round(seconds["loop"] / seconds["reroll"], 1)}


def ran(model: nn.Module, inputs: list[Tensor], gradients: bool = False) -> None:
    out = model(*inputs)
    if gradients:
        torch.autograd.grad(out.sum(), inputs)
    if out.is_cuda:
        torch.cuda.synchronize()
