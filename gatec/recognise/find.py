"""What a find says, and the complete vocabulary of kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from gatec.match import Term

KINDS: dict[str, str] = {
    "glu": "one branch of layers multiplied by another, the activation on one of them or on none",
    "highway": "a blend g * a + (1 - g) * b of two values",
    "residual-scale": "a learned or computed scale on a branch that is added to the stream beside it",
    "attention-output": "what attention returns, gated before it leaves",
    "channel": "one number per channel, from all positions: squeeze and excite, ECA, channel attention",
    "spatial": "one number per position, shared by its channels: spatial attention, a gate per token",
    "feature": "a learned number per feature, the same for every input",
    "scalar": "one learned number in front of a whole value",
    "hard": "a value kept or dropped by a decision: a comparison, a rounded signal, the k largest",
    "router": "weights over experts, computed from the input that the experts see",
    "mixture": "several streams summed, each under a weight of its own",
    "modulation": "a value scaled and shifted by what layers make of a condition",
    "token-mixing": "a value multiplied by what a layer makes of other positions",
    "cell": "an LSTM- or GRU-like cell: a state replaced through several gates",
    "recurrence": "a state that decays and takes up an input: one step, a loop over steps, or its parallel form",
    "exit": "one of two results taken by a confidence or a score",
    "product": "a value times a bounded or activated signal, of no more special kind",
}


@dataclass(frozen=True)
class Find:
    """A gate that the model spells out. `parameters` and `flops` are those of the signal, `bytes` of its own pointwise nodes."""

    kind: str
    signal: str
    value: str
    site: str
    where: str
    shape: tuple[int, ...]
    equation: str
    parameters: int
    flops: int
    bytes: int
    node: fx.Node
    term: Term

    def data(self) -> dict[str, Any]:
        """The find as plain JSON values."""
        names = ("kind", "signal", "value", "site", "where", "equation", "parameters", "flops", "bytes")
        return {name: getattr(self, name) for name in names} | {"shape": [size_of(s) for s in self.shape]}

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.kind:<17} {self.signal:<12} {self.site or '(model)':<40} {size:<14} {self.where}".rstrip()


def size_of(size: Any) -> int | str:
    """A size as it stands in JSON: a symbolic one by its name."""
    return size if type(size) is int else str(size)
