"""Which gates of a model are computed by generated kernels, forward and backward, and why others are not."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from torch import fx, nn

from gatec.errors import Refused
from gatec.lower import NOTHING, Fusion
from gatec.match.terms import join
from gatec.program import Program
from gatec.recognise import finds
from gatec.rerolling import reroll
from gatec.rewrite import copied

Row = dict[str, Any]


def covered(model: nn.Module, inputs: Any) -> Row:
    """How many of the gates; loops over time are re-rolled first, which makes one gate of all their steps."""
    rolled = reroll(model, inputs)
    gates = [*gates_of(rolled, inputs)]
    left = Counter(f"{kind}: {why}" for kind, _, why in gates if why)
    whole = max(len(gates), len(finds(Program.of(copy.deepcopy(model), inputs, {}).canon())))
    return {"gates": whole, "in kernels": whole - left.total(), "in no kernel": sorted(left)}


def gates_of(model: nn.Module, inputs: Any) -> Iterator[tuple[str, str, str]]:
    """The kind of every gate, its line of code, and why no kernel computes it, or ""."""
    program = Program.of(model, inputs, {})
    found = finds(program.canon())
    for path in dict.fromkeys(f.site for f in found):
        captured, fusion = program.graph_of(path), Fusion()
        if captured is None:
            yield from ((f.kind, f.where, NOTHING) for f in found if f.site == path)
            continue
        inside = partial(_inside, program, path)
        with suppress(Refused):  # nothing is put on this device
            fusion(program.module(path), copied(captured), program.calls[path][0], root=program.model, graph_of=inside)
        yield from fusion.gates


def _inside(program: Program, path: str, child: str) -> fx.Graph | None:
    return program.graph_of(join(path, child))
