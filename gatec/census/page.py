"""The census as one HTML file: a viewer around the JSON of the census, with nothing to load and nothing to send."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("model.js", "rows.js", "panel.js", "page.js")
POLICY = "default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"


def page(census: dict[str, Any]) -> str:
    """The page. Names come from users: text is escaped, data cannot end its script tag, no other script may run."""
    style, script = _asset("page.css"), "\n".join(map(_asset, SCRIPTS))
    parts = {
        "policy": POLICY.format(style=_digest(style), script=_digest(script)),
        "title": _ascii(html.escape(f"{census['model']}: gates")),
        "style": style,
        "data": _embedded(census),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], _asset("page.html"))


@cache
def _asset(name: str) -> str:
    return files("gatec.census").joinpath("assets", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(census: dict[str, Any]) -> str:
    """JSON that means nothing to an HTML parser."""
    plain = json.dumps(census, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _ascii(text: str) -> str:
    return text.encode("ascii", "xmlcharrefreplace").decode()
