"""Loops over time whose state is a matrix for each head, beside the same module after gatec.reroll."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from gatec.bench.clock import medians
from gatec.bench.scan import SHORT, columns, ran, with_gradients
from gatec.rerolling import reroll

LENGTHS = (64, 256, 1024)
SIZES = ((1, 2, 32), (2, 8, 64))  # batch, heads, and the width of keys and values
WITH_GRADIENTS = 256  # above it the loop's backward takes many seconds


class Gated(nn.Module):
    """A state of keys x values that decays by key, or by head where it erases what it overwrites."""

    def __init__(self, erases: bool) -> None:
        super().__init__()
        self.erases = erases

    def forward(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        state, out = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
        for t in range(q.shape[2]):
            state = state * decay[:, :, t].unsqueeze(-1)
            new = v[:, :, t] - (state * k[:, :, t].unsqueeze(-1)).sum(-2) if self.erases else v[:, :, t]
            state = state + k[:, :, t].unsqueeze(-1) * new.unsqueeze(-2)
            out.append((state * q[:, :, t].unsqueeze(-1)).sum(-2))
        return torch.stack(out, 2)


def matrices(lengths: tuple[int, ...] = LENGTHS, repeats: int = 3) -> list[dict[str, Any]]:
    """Rows by form, size and length: milliseconds of the loop and of the recurrence, their ratio, seconds of the conversion."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for form, model in (("gated linear attention", Gated(False)), ("gated delta rule", Gated(True))):
        reroll(model, _inputs(model, SIZES[0], SHORT, device))  # what is imported and cached once is not counted
        for size in SIZES:
            start = time.perf_counter()
            rolled = reroll(model, _inputs(model, size, SHORT, device))
            convert = {"convert s": round(time.perf_counter() - start, 2)}
            named = {"form": form, **dict(zip(("batch", "heads", "width"), size, strict=True))}
            given = [_inputs(model, size, t, device) for t in lengths]
            rows += [{**named, **_row(model, rolled, x, repeats), **convert} for x in given]
    return rows


def _inputs(model: Gated, size: tuple[int, ...], steps: int, device: str) -> list[Tensor]:
    batch, heads, width = size
    q, k, v = torch.randn(3, batch, heads, steps, width, device=device).unbind()
    decay = torch.rand(batch, heads, steps, 1 if model.erases else width, device=device)
    return [q, nn.functional.normalize(k, dim=-1), v, decay]


def _row(model: nn.Module, rolled: nn.Module, inputs: list[Tensor], repeats: int) -> dict[str, Any]:
    with torch.no_grad():
        ahead = medians({"loop": lambda: ran(model, inputs), "reroll": lambda: ran(rolled, inputs)}, repeats)
    row = {"steps": inputs[0].shape[2], **columns(ahead, "")}
    return row | (with_gradients(model, rolled, inputs, repeats) if inputs[0].shape[2] <= WITH_GRADIENTS else {})
