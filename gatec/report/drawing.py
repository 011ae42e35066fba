"""Pictures of a report as SVG inside HTML: a heat map of experts, and a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from gatec.report.costs import Cost

CELL, TOP, LETTER = 18, 26, 7.2
WIDE, HIGH, EDGE, FOOT = 640, 280, 76, 56


def heat_map(layers: Sequence[Cost]) -> str:
    """One row for each layer and one cell for each expert: the more tokens choose it, the fuller its colour."""
    widest = max(len(c.usage) for c in layers)
    left = round(16 + LETTER * max(len(c.site or "(model)") for c in layers))
    cells = []
    for row, cost in enumerate(layers):
        y = TOP + row * CELL
        cells.append(_text(left - 8, y + 13, cost.site or "(model)", "end"))
        most = max(max(cost.usage), 1e-12)
        for expert, share in enumerate(cost.usage):
            kind = "cell" if share else "cell dead"
            words = f"{cost.site or '(model)'}, expert {expert}: {share:.1%} of all choices"
            cells.append(f'<rect class="{kind}" x="{left + expert * CELL}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2" '
                         f'fill-opacity="{max(share / most, 0.06):.3f}"><title>{escape(words)}</title></rect>')  # fmt: skip
    marks = [_text(left + e * CELL + 8, TOP - 8, str(e), "middle") for e in range(0, widest, max(1, widest // 8))]
    return _svg(left + widest * CELL + 8, TOP + len(layers) * CELL + 8, "Expert usage", [*marks, *cells])


def curve(points: Sequence[tuple[float, float]]) -> str:
    """Loss against the share of experts that a token runs through."""
    points = [(share, loss) for share, loss in points if math.isfinite(loss)]
    values = [loss for _, loss in points] or [0.0]
    low, high = min(values), max(values)
    room = (high - low) or abs(high) or 1.0
    low, high = low - 0.08 * room, high + 0.08 * room
    places = max(0, 2 - math.floor(math.log10(room)))

    def at(share: float, loss: float) -> tuple[float, float]:
        return EDGE + share * (WIDE - EDGE - 24), 16 + (high - loss) / (high - low) * (HIGH - 16 - FOOT)

    spots = [at(*p) for p in points]
    lines = [f'<line class="grid" x1="{EDGE}" x2="{WIDE - 24}" y1="{y:.1f}" y2="{y:.1f}"/>'
             + _text(EDGE - 8, y + 4, f"{loss:.{places}f}", "end")
             for loss in _steps(low, high) for y in [at(0, loss)[1]]]  # fmt: skip
    lines += [_text(at(s, low)[0], HIGH - FOOT + 20, f"{s:.0%}", "middle") for s in (0, 0.25, 0.5, 0.75, 1)]
    lines.append(_text((WIDE + EDGE) / 2, HIGH - 10, "active share of the experts", "middle"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    lines.append(f'<polyline class="curve" points="{path}"/>')
    for (x, y), (share, loss) in zip(spots, points, strict=True):
        lines.append(f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="4">'
                     f"<title>{share:.1%} active: loss {loss:.6g}</title></circle>")  # fmt: skip
    return _svg(WIDE, HIGH, "Loss against active share", lines)


def widths(rows: Sequence[tuple[str, str, int, int]]) -> str:
    """One bar for each group of slots (name, kind, slots that are left, slots that there were); full is what is left."""
    room = round(16 + LETTER * max((len(name) for name, *_ in rows), default=0))
    most = max((size for *_, size in rows), default=1)
    parts = []
    for row, (name, kind, left, size) in enumerate(rows):
        y, scale = TOP + row * CELL, (WIDE - EDGE) / most
        words = f"{name}: {left} of {size} {kind}"
        parts.append(_text(room - 8, y + 13, name, "end"))
        parts.append(f'<rect class="cell dead" x="{room}" y="{y}" width="{size * scale:.1f}" height="{CELL - 4}" rx="2">'
                     f"<title>{escape(words)}</title></rect>")  # fmt: skip
        parts.append(f'<rect class="cell" x="{room}" y="{y}" width="{left * scale:.1f}" height="{CELL - 4}" rx="2">'
                     f"<title>{escape(words)}</title></rect>")  # fmt: skip
        parts.append(_text(room + size * scale + 8, y + 13, f"{left} of {size} {kind}", "start"))
    return _svg(room + WIDE + 2 * EDGE, TOP + len(rows) * CELL + 8, "Widths", parts)


def _steps(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / 4 for i in range(5)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
            f"{''.join(parts)}</svg>")  # fmt: skip
