"""The sweep in three tables: by suite, by category of module, by other call; and what went wrong, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from gatec.bench.coverage.category import BARRED, CATEGORIES
from gatec.bench.coverage.judge import GENERIC, HELD, OTHERS
from gatec.bench.coverage.peers import PEERS

Row = dict[str, Any]
Table = list[list[str]]


def summary(rows: list[Row]) -> list[Table]:
    """Tables with a heading row each."""
    classes = [c for row in rows for c in row.get("classes", ())]
    return [by_suite(rows), by_category(classes), by_call(classes)]


def wrongs(rows: list[Row]) -> Iterator[str]:
    """One line per result that is not the module's own; there should be none."""
    for row in rows:
        if row.get("after"):
            yield f"{row['model']}  (model)  after capture  {row['after']}"
        for kind in row.get("classes", ()):
            found = {"recorded": kind.get("exact", ""), **kind.get("calls", {})}
            bad = {name: word for name, word in found.items() if word.startswith(("wrong", "raised"))}
            yield from (f"{row['model']}  {kind['class']}  {name}  {word}" for name, word in bad.items())


def by_suite(rows: list[Row]) -> Table:
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    asked = [peer for peer in PEERS if any(peer in row.get("peers", ()) for row in rows)]
    head = ["suite", "families", "models", "whole", "by module", "refused", "gates", "seconds", *asked]
    return [
        head,
        *(_suite(suite, [r for r in rows if r["suite"] == suite], asked) for suite in suites),
        _suite("all", rows, asked),
    ]


def _suite(suite: str, rows: list[Row], asked: list[str]) -> list[str]:
    built = [row for row in rows if row["status"] != "not built"]
    status = Counter(row["status"] for row in built)
    gates = sum(n for row in built for n in row.get("gates", {}).values())
    seconds = sum(row.get("seconds", 0.0) for row in built)
    peers = [_peer([row["peers"][peer] for row in built if peer in row.get("peers", ())], seconds) for peer in asked]
    families = len({(row["suite"], row["family"]) for row in built})
    return [
        suite,
        *map(str, (families, len(built), status["whole"], status["by module"], status["refused"], gates)),
        f"{seconds:.1f}",
        *peers,
    ]


def _peer(answers: list[Row], ours: float) -> str:
    """Models captured whole, and how many times gatec's seconds it took."""
    whole = sum(a["status"] == "whole" for a in answers)
    return f"{whole} in x{sum(a.get('seconds', 0.0) for a in answers) / max(ours, 1e-9):.1f}"


def by_category(classes: list[Row]) -> Table:
    found = [_category(kind, [c for c in classes if c["category"] == kind]) for kind in CATEGORIES]
    barred = _category("the first seven", [c for c in classes if c["category"] in BARRED])
    return [["modules", "classes", "to the bit", "%", "refused", "tried longer", "same graph", "%"], *found, barred]


def _category(name: str, classes: list[Row]) -> list[str]:
    exact = [c for c in classes if c["captured"] and not c.get("exact")]
    tried = [c for c in exact if any(c["calls"].get(n) in HELD for n in GENERIC)]
    generic = sum(all(c["calls"].get(n, "same graph") == "same graph" for n in GENERIC) for c in tried)
    refused = sum(not c["captured"] for c in classes)
    return [name, str(len(classes)), str(len(exact)), _percent(len(exact), len(classes)), str(refused), str(len(tried)),
            str(generic), _percent(generic, len(tried))]  # fmt: skip


def by_call(classes: list[Row]) -> Table:
    words = (*HELD, "fell back", "wrong", "raised")
    said = [(name, c["calls"][name].partition(":")[0]) for c in classes for name in c.get("calls", ())]
    counts = {name: Counter(word for other, word in said if other == name) for name in ("base", *OTHERS)}
    return [["call", *words], *([name, *(str(count[word]) for word in words)] for name, count in counts.items())]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def compact(rows: Iterable[Row]) -> list[Row]:
    """Rows to keep: of the classes, counts by category and those of which there is something to say."""
    return [_compact(row) for row in rows]


def _compact(row: Row) -> Row:
    if "classes" not in row:
        return row
    kept = [
        c
        for c in row["classes"]
        if not c["captured"] or c.get("exact") or any(w not in HELD for w in c["calls"].values())
    ]
    counts = Counter(c["category"] for c in row["classes"])
    return {
        **{k: v for k, v in row.items() if k != "classes"},
        "classes": dict(sorted(counts.items())),
        "remarks": kept,
    }
