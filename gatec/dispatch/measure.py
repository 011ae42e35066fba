"""Which way is faster: taken in turns with what the graph had, and kept only where the difference is no noise."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatec.dispatch.table import Record

FASTER = 0.97  # of eager's median; less is noise
LAUNCH_BOUND = 50e-3  # milliseconds: below it the launch is what counts, and the graph keeps what it had
HEAT, LEAST, MOST = 3, 7, 31  # rounds: to tell the ways apart, and at least and at most against eager

Thunk = Callable[[], Any]
Sample = Callable[[Thunk], float]  # milliseconds of one run


@dataclass(frozen=True)
class Race:
    """Milliseconds of both sides, round by round."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / max(statistics.median(self.theirs), 1e-9)

    @property
    def won(self) -> bool:
        return self.ratio < FASTER and quantile(self.ours, 0.8) < statistics.median(self.theirs)

    @property
    def summary(self) -> list[float]:
        """Median and 80th percentile of ours, median of theirs."""
        shown = (statistics.median(self.ours), quantile(self.ours, 0.8), statistics.median(self.theirs))
        return [float(f"{t:.4g}") for t in shown]


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


def race(ours: Thunk, theirs: Thunk, sample: Sample, limit: float, rounds: int = MOST) -> Race:
    """A, B, A, B after one round that is not counted; no new round after `limit` milliseconds once there are enough."""
    times: tuple[list[float], list[float]] = ([], [])
    spent = sample(ours) + sample(theirs)
    while len(times[0]) < rounds and (len(times[0]) < LEAST or spent < limit):
        for run, kept in zip((ours, theirs), times, strict=True):
            kept.append(sample(run))
        spent += times[0][-1] + times[1][-1]
    return Race(*times)


def fastest(ways: Mapping[str, Thunk], eager: Thunk, sample: Sample, limit: float) -> Record:
    """The record of a measurement of several right ways against eager."""
    heats = {name: race(run, eager, sample, 0, HEAT) for name, run in ways.items()} if len(ways) > 1 else {}
    name = min(heats, key=lambda n: heats[n].ratio, default=next(iter(ways)))
    final = race(ways[name], eager, sample, limit)
    times = {**{n: h.summary for n, h in heats.items() if n != name}, name: final.summary}
    if statistics.median(final.theirs) < LAUNCH_BOUND:
        return Record("", "launch bound: the graph keeps what it had", times)
    if not final.won:
        return Record("", f"not faster: {name} takes {final.ratio:.2f} of eager's time", times)
    return Record(name, f"{final.ratio:.2f} of eager's time", times)
