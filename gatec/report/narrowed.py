"""What layers and the whole model cost before and after slots were removed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Pair = tuple[float, float]
HEADS = (
    "layer",
    *(f"{what}, {when}" for what in ("parameters", "multiplications", "ms", "bytes") for when in ("before", "after")),
)


@dataclass(frozen=True)
class Narrowed:
    """Of one layer, or of the whole model where `site` is empty: (before, after), measured on this machine.

    multiplications    of parameters, in the forward of the example inputs
    seconds            of that forward
    memory             bytes of parameters, and of what the layer returns; of the whole model of parameters, buffers and the
                       most that is there at once
    """

    site: str
    parameters: tuple[int, int]
    multiplications: tuple[int, int]
    seconds: Pair
    memory: tuple[int, int]

    @property
    def row(self) -> tuple[Any, ...]:
        """As a row of a table under HEADS."""
        times = [f"{s * 1e3:.3g}" for s in self.seconds]
        return self.site or "(model)", *self.parameters, *self.multiplications, *times, *self.memory

    def data(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def __str__(self) -> str:
        (p, q), (m, n), (s, t), (a, b) = self.parameters, self.multiplications, self.seconds, self.memory
        return (
            f"parameters {p:,} -> {q:,}, multiplications {m:,} -> {n:,}, {s * 1e3:.2f} -> {t * 1e3:.2f} ms here, "
            f"memory {a / 1e6:.2f} -> {b / 1e6:.2f} MB"
        )
