"""What can be captured of other people's models: `gatec bench coverage`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gatec.bench.coverage.peers import PEERS
from gatec.bench.coverage.pool import answers
from gatec.bench.coverage.suites import entries
from gatec.bench.coverage.summary import compact, summary, wrongs
from gatec.bench.coverage.work import OURS, work

__all__ = ["OURS", "compact", "coverage", "summary", "wrongs"]

LIMIT = 60.0  # CPU seconds for one model and one front end


def coverage(only: str = "", peers: bool = True, jobs: int = 2, limit: float = LIMIT,
             progress: Callable[[dict[str, Any], str], Any] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """One row per model whose "suite:name" has `only` in it; peers are asked about the same model in the same run."""
    chosen = {spec: entry for spec, entry in entries().items() if re.search(only, spec)}
    rows: dict[str, dict[str, Any]] = {s: {"model": s, "suite": e.suite, "family": e.family} for s, e in chosen.items()}
    asked = [(spec, who) for spec in chosen for who in (OURS, *(PEERS if peers else ()))]
    for (spec, who), answer in answers(work, asked, jobs, limit):
        answer = answer if isinstance(answer, dict) else {"status": "refused", "reason": answer}
        if who == OURS:
            rows[spec] |= answer
        else:
            rows[spec].setdefault("peers", {})[who] = answer
        if progress:
            progress(rows[spec], who)
    return list(rows.values())
