"""The census as text: three tables, equal layers folded into one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import StringIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from gatec.census.fold import rows
from gatec.census.savings import Saving
from gatec.program import Edit
from gatec.recognise import Find
from gatec.roofline import in_bytes, in_seconds, machine

WIDE = 100_000  # columns: a line is complete by itself, and can be searched for
STYLES = {"put": "green", "left": "yellow", "near": "cyan"}


def text(tables: Group) -> str:
    """The tables with every line whole, however long it is."""
    console = Console(file=StringIO(), width=WIDE, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(tables)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def tables(
    heading: str, gates: list[Find], places: list[Edit], missed: list[tuple[str, str]], savings: list[Saving]
) -> Group:
    """The tables for rich, which fits them into the terminal."""
    found = _rows((g.site, (g.kind, g.signal, "x".join(map(str, g.shape)), g.where)) for g in gates)
    free = _rows((e.site, (e.gate, e.verdict, e.why)) for e in places)
    unseen = _rows((path, (why,)) for path, why in missed)
    fused = _rows((s.site, _priced(s)) for s in savings)
    parts: list[Text | Table] = [Text(heading, style="bold")]
    parts += _table("gate signal module - shape code", ((k, s, *m, x, w) for *m, (k, s, x, w) in found))
    parts += _table("place module - verdict why", ((g, *m, v, w) for *m, (g, v, w) in free))
    parts += _table(
        "region anchor module - launches bytes fused flop/B H200", ((r, a, *m, *c) for *m, (r, a, *c) in fused)
    )
    parts += _table("uncaptured - why", ((*m, w) for *m, (w,) in unseen))
    return Group(*parts)


def _priced(saving: Saving) -> tuple[str, ...]:
    p, h200 = saving.price, machine("h200")
    before, after = (in_seconds(p.seconds(h200, fused=f)) for f in (False, True))
    launches = (f"{p.launches} -> {p.kernels}", in_bytes(p.before), in_bytes(p.after), f"{p.intensity:.2f}")
    return (saving.region, saving.anchor, *launches, f"{before} -> {after}")


def _rows(found: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for path, count, cells in rows(found):
        yield path or "(model)", f"x{count}" if count > 1 else "", cells


def _table(titles: str, cells: Iterable[tuple[str, ...]]) -> list[Text | Table]:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles.split():
        table.add_column(Text(title.strip("-")), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return [Text(""), table] if table.row_count else []
