"""What a device reaches at best: measured on it, in the same run as what is compared with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gatec.bench.subjects import Subject
from gatec.bench.turns import in_turns

SIZES = {"cuda": (1 << 30, 8192), "cpu": (1 << 26, 1024)}  # bytes of a copy, and rows of a square product


@dataclass(frozen=True)
class Ceilings:
    """Bytes that a copy moves, and operations of a matrix product, in a second."""

    bandwidth: float
    rate: float


def ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    size, rows = SIZES[device]
    source, matrix = (
        torch.empty(size, dtype=torch.int8, device=device),
        torch.randn(rows, rows, device=device).to(dtype),
    )
    target = torch.empty_like(source)
    times = in_turns({"copy": lambda: target.copy_(source), "product": lambda: matrix @ matrix}, device, 5)
    return Ceilings(2 * size / times["copy"], 2 * rows**3 / times["product"])


def ideal(subject: Subject, dtype: torch.dtype, most: Ceilings, *, trained: bool = False) -> float:
    """Seconds in which nothing is moved twice: operands, weights and the result, then the gradients of all of them.

    A backward multiplies twice what the forward does.
    """
    read = sum(math.prod(s) for s in subject.shapes) + sum(p.numel() for p in subject.parameters())
    wrote = math.prod(result_shape(subject))
    moved = dtype.itemsize * (3 * read + 2 * wrote if trained else read + wrote)
    return max(moved / most.bandwidth, (3 if trained else 1) * subject.flops / most.rate)


def result_shape(subject: Subject) -> tuple[int, ...]:
    return subject.result or torch.broadcast_shapes(*subject.shapes)
