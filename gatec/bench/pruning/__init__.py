"""What pruning does to other people's models, to a small classifier's accuracy and to speed: `gatec bench prune`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gatec.bench.coverage.pool import answers
from gatec.bench.pruning import digits, speed
from gatec.bench.pruning.peer import PEER
from gatec.bench.pruning.subjects import subjects
from gatec.bench.pruning.summary import summary, wrongs
from gatec.bench.pruning.work import OURS, work

__all__ = ["OURS", "PEER", "pruning", "summary", "wrongs"]

LIMIT = 120.0  # CPU seconds for one model and one of the two

Row = dict[str, Any]


def pruning(only: str = "", peers: bool = True, jobs: int = 2, seeds: int = 3, limit: float = LIMIT, file: Path | None = None,
            progress: Callable[[Row, str], Any] | None = None) -> list[Row]:  # fmt: skip
    """A row for each model whose "suite:name" has `only` in it, then for "digits" and "speed".

    gatec is asked about all of them first: the peer is stopped at `limit` where it finds no end.
    Every answer is a line of `file` as soon as it is there, and a later run with the same file asks for the others only.
    """
    rows: dict[str, Row] = {s: {"model": s, "suite": e.suite} for s, e in subjects().items() if re.search(only, s)}
    asked = [(spec, who) for who in (OURS, *((PEER,) if peers else ())) for spec in rows]
    for spec, who, answer in _answered(asked, jobs, limit, file):
        rows[spec] |= answer if who == OURS else {"peer": answer}
        if progress:
            progress(rows[spec], who)
    found = list(rows.values())
    found += digits.rows(range(seeds), peers) if re.search(only, "digits") else []
    found += speed.rows() if re.search(only, "speed") else []
    return found


def _answered(
    asked: list[tuple[str, str]], jobs: int, limit: float, file: Path | None
) -> Iterator[tuple[str, str, Row]]:
    known = _known(file)
    yield from ((spec, who, known[spec, who]) for spec, who in asked if (spec, who) in known)
    for (spec, who), answer in answers(work, [task for task in asked if task not in known], jobs, limit):
        said = answer if isinstance(answer, dict) else {"status": "stopped", "reason": answer}
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps({"model": spec, "who": who, "answer": said}) + "\n")
        yield spec, who, said


def _known(file: Path | None) -> dict[tuple[str, str], Row]:
    if file is None or not file.is_file():
        return {}
    lines = map(json.loads, file.read_text().splitlines())
    return {(line["model"], line["who"]): line["answer"] for line in lines}
