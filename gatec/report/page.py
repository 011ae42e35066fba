"""A report as one HTML file: tables and pictures, with nothing to load and nothing that runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from gatec.report.costs import Cost
from gatec.report.drawing import curve, heat_map, widths
from gatec.report.narrowed import HEADS, Narrowed

POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def page(
    model: str,
    edits: Sequence[Any],
    layers: Sequence[Cost],
    losses: Sequence[tuple[float, float]],
    last: str,
    wide: Sequence[tuple[str, str, int, int]] = (),
    narrowed: Sequence[Narrowed] = (),
) -> str:
    """The page. Names come from users: all text is escaped, and no script may run."""
    style = _style()
    used = [c for c in layers if c.usage]
    body = [f"<h1>{escape(model)}</h1>", f"<p>{escape(last)}</p>"]
    body += [_section("Layers", _costs(layers))] if layers else []
    body += [_section("Expert usage", f"<p>{USAGE}</p>{heat_map(used)}")] if used else []
    body += [_section("Loss against active share", curve(losses))] if losses else []
    body += [_section("Widths", f"<p>{WIDTHS}</p>{widths(wide)}")] if wide else []
    body += (
        [_section("Before and after", f"<p>{NARROWED}</p>{_table(HEADS, [n.row for n in narrowed])}")]
        if narrowed
        else []
    )
    for verdict, title in (("put", "Put"), ("left", "Left, and why"), ("near", "Near misses")):
        found = [e for e in edits if e.verdict == verdict]
        body += [_section(f"{title} ({len(found)})", _edits(found))] if found else []
    policy = POLICY.format(base64.b64encode(hashlib.sha256(style.encode()).digest()).decode())
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(model)}: conversion</title>
<style>{style}</style>
</head>
<body>
<main>
{chr(10).join(body)}
</main>
</body>
</html>
"""
    return html.encode("ascii", "xmlcharrefreplace").decode()


WIDTHS = "Each bar is a group of slots that only go together: channels, heads, features. Full is what is left."
NARROWED = "Measured on this machine, in one forward of the example inputs, before and after slots were removed."
USAGE = "Each row is a layer, each cell an expert. The fullest is the layer's busiest expert, a dashed one was never chosen."


def _costs(layers: Sequence[Cost]) -> str:
    heads = (
        "site",
        "gate",
        "experts",
        "active",
        "parameters",
        "met by a token",
        "flop per token",
        "ms",
        "ms without gatec",
    )
    rows = [(c.site or "(model)", c.gate, c.experts, f"{c.share:.0%}", c.parameters, c.active, c.flops, _ms(c.seconds),
             _ms(c.seconds_before)) for c in layers]  # fmt: skip
    return _table(heads, rows)


def _edits(edits: Iterable[Any]) -> str:
    drifts = [("" if e.drift is None else f"{e.drift:.1e}", (e.why or e.note.strip("; "))) for e in edits]
    return _table(
        ("site", "gate", "drift", "words"),
        [(e.site or "(model)", e.gate, *d) for e, d in zip(edits, drifts, strict=True)],
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    filled = [i for i in range(len(heads)) if any(r[i] not in (None, "") for r in rows)]
    top = "".join(f"<th>{heads[i]}</th>" for i in filled)
    lines = "".join("<tr>" + "".join(_cell(r[i]) for i in filled) + "</tr>" for r in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


@cache
def _style() -> str:
    return files("gatec.report").joinpath("assets", "report.css").read_text(encoding="utf-8").strip()
