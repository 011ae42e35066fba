"""What an export made: the file, what is in it, and how closely onnxruntime agreed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gatec.roofline import in_bytes


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime was from eager at one shape, and eager from its own float64."""

    shape: str
    max_abs: float
    max_rel: float
    eager: float | None = None

    def __str__(self) -> str:
        own = "" if self.eager is None else f"   (eager's own {self.eager:.1e})"
        return f"{self.shape}   drift {self.max_rel:.1e}{own}"


@dataclass(frozen=True)
class Exported:
    path: Path
    opset: int
    size: int
    operators: dict[str, int]
    dynamic: dict[str, tuple[str, ...]]
    parity: tuple[Parity, ...]
    notes: tuple[str, ...]
    skips: tuple[str, ...] = ()

    def noting(self, *first: str) -> Exported:
        return replace(self, notes=first + self.notes)

    def __str__(self) -> str:
        operators = sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))
        rows = [("wrote", f"{self.path}   {in_bytes(self.size)}   opset {self.opset}")]
        rows += [("input", f"{name}[{', '.join(axes)}]") for name, axes in self.dynamic.items()]
        rows += [("holds", line) for line in wrapped(f"{name} {n}" for name, n in operators)]
        rows += [("skips", skipped) for skipped in self.skips]
        rows += [("verify", str(row)) for row in self.parity]
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<7}{text}" for name, text in rows)


def wrapped(words: Iterable[str], width: int = 90) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f", {word}" if lines[-1] else word
    return lines
