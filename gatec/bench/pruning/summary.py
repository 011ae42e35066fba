"""The sweep in one table by suite, and a line for every model that is not pruned exactly."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from gatec.bench.pruning.ours import EXACT

Row = dict[str, Any]
COVERED = 0.95  # of the parameters
HEAD = ["suite", "models", "exact", "reached", "all removed", "median s", "slowest s", "peer ran", "of these exact", "peer failed",
        "peer stopped"]  # fmt: skip


def summary(rows: list[Row]) -> list[list[str]]:
    """A line for each suite: how many models are exact and reached by groups, and what the peer came to."""
    swept = [row for row in rows if "suite" in row and row.get("status") != "not built"]
    suites = list(dict.fromkeys(row["suite"] for row in swept))
    return [HEAD, *(_line(suite, [r for r in swept if r["suite"] == suite]) for suite in suites), _line("all", swept)]


def _line(suite: str, rows: list[Row]) -> list[str]:
    seconds = [row["seconds"] for row in rows if "seconds" in row] or [0.0]
    exact = sum(row.get("status") == "exact" for row in rows)
    reached = sum(row.get("covered", 0) >= COVERED for row in rows)
    whole = sum(row.get("removed") == 1 for row in rows)
    times = [f"{median(seconds):.2f}", f"{max(seconds):.1f}"]
    return [
        suite,
        *map(str, (len(rows), exact, reached, whole)),
        *times,
        *_peer([row["peer"] for row in rows if "peer" in row]),
    ]


def _peer(answers: list[Row]) -> list[str]:
    ran = [answer for answer in answers if answer["status"] == "ran"]
    exact = sum(answer["drift"] <= EXACT for answer in ran)
    stopped = sum(answer["status"] == "stopped" for answer in answers)
    return [*map(str, (len(ran), exact, len(answers) - len(ran) - stopped, stopped))] if answers else []


def wrongs(rows: list[Row]) -> Iterator[str]:
    """One line for each model that is not exact, of which groups reach too little, or in which closed slots stay."""
    for row in (row for row in rows if "suite" in row):
        if row.get("status") != "exact":
            said = row.get("reason") or row.get("drift", "")
            yield f"{row['model']}  {row.get('status')}  {said}  {row.get('kinds', '')}".rstrip()
        elif row["covered"] < COVERED:
            refused = "; ".join(sorted(set(row["refused"].values())))
            yield f"{row['model']}  {row['covered']:.1%} of the parameters are reached  {refused}"
        if row.get("removed", 1) < 1:
            yield f"{row['model']}  {row['removed']:.1%} of the closed slots are removed  {'; '.join(row['stays'])}"
