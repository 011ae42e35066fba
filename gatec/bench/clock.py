"""Times of several ways to do one thing, taken in turns so that a busy machine is as unfair to each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int, *, settled: bool = False) -> dict[str, float]:
    """Median seconds of each way over `repeats` rounds; the first round warms up and is not counted.

    `settled` runs each way twice in its turn and counts the second: one that frees much memory takes what the next needs.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            if settled:
                way()
            start = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
