"""scan(): the gates that a model has, the places where gates could go, and what could not be looked into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from gatec.catalog import gates
from gatec.pipeline import prepare
from gatec.program import Edit
from gatec.recognise import Find, finds
from gatec.rewrite import put


@dataclass(frozen=True)
class Census:
    """gates: what is there. places: one line per pass and site, put = could be put. missed: (module, why)."""

    model: str
    gates: list[Find]
    places: list[Edit]
    missed: list[tuple[str, str]]

    def __str__(self) -> str:
        rows = [
            f"{self.model}: {len(self.gates)} gates, {sum(e.verdict == 'put' for e in self.places)} places for more"
        ]
        rows += ["", "gates"] + [f"  {f}" for f in self.gates] if self.gates else []
        rows += ["", "places"] + [f"  {e}" for e in self.places] if self.places else []
        rows += (
            ["", "not captured"] + [f"  {p or '(model)':<40} {why}" for p, why in self.missed] if self.missed else []
        )
        return "\n".join(rows)


def scan(model: nn.Module, inputs: Any = None) -> Census:
    """The census of a model; `inputs` as in `convert`. Nothing is changed."""
    program = prepare(model, inputs)
    found = finds(program.canon())
    for gate in gates().values():
        put(gate, {}, program, [], dry=True)
    return Census(type(model).__name__, found, program.edits, sorted(program.missed.items()))
