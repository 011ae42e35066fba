"""Times of several ways to do one thing, taken in turns so that a busy machine is as unfair to each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from gatec.clocks import clock

QUICK = 0.05  # seconds


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way over `repeats` rounds; the first round warms up and is not counted.

    A quick way runs twice in its turn and the second is counted: the one before it may have given back the memory it needs.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            if taken[name] and min(taken[name]) < QUICK:
                way()
            taken[name].append(_timed(way))
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def _timed(way: Callable[[], Any]) -> float:
    start = clock()
    way()
    return clock() - start
