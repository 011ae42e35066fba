"""What a scan returns, and the scan."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from torch import nn

from gatec.catalog import gates
from gatec.census.page import page
from gatec.census.savings import Saving, savings
from gatec.census.table import tables, text
from gatec.census.tree import Entry, entries, missed
from gatec.pipeline import prepare
from gatec.program import Edit
from gatec.recognise import KINDS, Find, finds
from gatec.rewrite import put

SCHEMA = "gatec.census/2"


@dataclass(frozen=True)
class Census:
    """What was found in a model: print it, or ask for `json()` or `html()`.

    gates    what is there
    places   one line per pass and site; put = could be put
    missed   (module, why) for every module that could not be captured
    modules  the module tree
    savings  regions that one kernel could compute, with launches and bytes before and after
    """

    model: str
    gates: list[Find]
    places: list[Edit]
    missed: list[tuple[str, str]]
    modules: list[Entry] = field(default_factory=list)
    savings: list[Saving] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, int]:
        verdicts = Counter(e.verdict for e in self.places)
        return {
            "modules": sum(e.capture != "shared" for e in self.modules),
            "parameters": self.modules[0].all if self.modules else 0,
            "gates": len(self.gates),
            "regions": len(self.savings),
            "bytes_saved": sum(s.price.saved for s in self.savings),
            "put": verdicts["put"],
            "left": verdicts["left"],
            "near": verdicts["near"],
            "missed": len(self.missed),
        }

    def data(self) -> dict[str, Any]:
        """The census as plain values; `schema` names their form and changes with it."""
        kinds = {f.kind: KINDS.get(f.kind, "") for f in self.gates}
        passes = {e.gate for e in self.places}
        return {
            "schema": SCHEMA,
            "model": self.model,
            "totals": self.totals,
            "kinds": dict(sorted(kinds.items())),
            "passes": {n: {"summary": g.summary, "born": g.born} for n, g in sorted(gates().items()) if n in passes},
            "gates": [f.data() for f in self.gates],
            "places": [{"pass": e.gate, "site": e.site, "verdict": e.verdict, "why": e.why} for e in self.places],
            "missed": [{"path": path, "why": why} for path, why in self.missed],
            "modules": [e.data() for e in self.modules],
            "regions": [s.data() for s in self.savings],
        }

    def json(self) -> str:
        """Everything as JSON; equal models give equal text."""
        return json.dumps(self.data(), indent=1) + "\n"

    def html(self) -> str:
        """A page that shows the module tree with everything in it: one file, no network."""
        return page(self.data())

    def __str__(self) -> str:
        return text(self.__rich__())

    def __rich__(self) -> Group:
        total = self.totals
        heading = f"{self.model}: {total['gates']} gates, {total['put']} places for more"
        heading += f", {total['missed']} not captured" if total["missed"] else ""
        return tables(heading, self.gates, self.places, self.missed, self.savings)


def scan(model: nn.Module, inputs: Any = None) -> Census:
    """The census of a model; `inputs` as in `convert`. Nothing is changed."""
    program = prepare(model, inputs)
    found = finds(program.canon())
    for gate in gates().values():
        put(gate, {}, program, [], dry=True)
    tree = entries(program)
    return Census(tree[0].name, found, program.edits, missed(program, tree), tree, savings(program, found))
