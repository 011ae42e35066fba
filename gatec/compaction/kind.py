"""One kind of what gates close, as compact goes through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gatec.capture.unit import Unit
from gatec.program import Edit, Program
from gatec.rewrite import Rewrite, Undo

Gated = tuple[str, Unit, Rewrite]  # the path of a unit, the unit, and the edit in it that put a gate


@dataclass(frozen=True)
class Kind:
    """`take` removes what the gates have closed from the program's model, and says what came of each gate.

    It leaves what it cannot remove exactly, with the reason, and notes in the model's recipe what it removed.
    """

    name: str  # as a Gate says it: Gate(closes=..., of=name)
    take: Callable[[Program, list[Gated], Undo], list[Edit]]
