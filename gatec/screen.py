"""What a person sees: plain aligned lines, colour on a terminal only, progress after a second."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.theme import Theme

THEME = Theme({"word.put": "green", "word.left": "yellow", "word.near": "cyan", "word.born": "dim"})
PATIENCE = 1.0  # seconds of silence that need no explanation


class Words(RegexHighlighter):
    """Colours the verdicts; without a terminal rich writes the text as it is."""

    base_style = "word."
    highlights = (r"(?P<put>put)|(?P<left>left)|(?P<near>near)|(?P<born>born .*)$",)


console = Console(theme=THEME, highlighter=Words())
errors = Console(stderr=True)


def say(text: str) -> None:
    """Lines as they are: never wrapped, because a line is greppable and complete by itself."""
    console.print(text, markup=False, soft_wrap=True)


def table(rows: Iterable[Iterable[str]]) -> None:
    """Columns by two spaces, the last one ragged."""
    for line in aligned(rows):
        say(line)


def aligned(rows: Iterable[Iterable[str]]) -> list[str]:
    """Every row as one line; numbers with units are set to the right, under their heading."""
    cells = [list(row) for row in rows]
    columns = range(max(map(len, cells), default=0))
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in columns]
    numeric = [all(_is_number(row[i]) for row in cells[1:] if i < len(row) and row[i]) for i in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=False)
        ).rstrip()
        for row in cells
    ]


def _is_number(cell: str) -> bool:
    return cell.lstrip("+-")[:1].isdigit()


@contextmanager
def working(what: str) -> Iterator[None]:
    """A pulsing bar on stderr, from the second second on, and only where somebody can see it."""
    if not errors.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=False) as bar:
        task = bar.add_task(what, total=None, visible=False)
        timer = threading.Timer(PATIENCE, lambda: bar.update(task, visible=True))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
