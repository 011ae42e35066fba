"""Which sides of each decision the inputs of a proof take, and further inputs that take the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from gatec.onnx.axes import Tensors
from gatec.onnx.masks import Literal
from gatec.onnx.parity import load
from gatec.onnx.skipping import Clause, Skipped

FACTORS = (-1.0, 4.0, 0.25, -4.0, 30.0, 0.0)
NOISES = 12


class Sides:
    """A model without branches, asked for what decides in the one with branches."""

    def __init__(self, dense: ir.Model, parts: Sequence[Skipped], folder: Path) -> None:
        self.parts = parts
        literals = {literal for part in parts for clause in part.clauses for literal in clause}
        self.names = sorted({str(literal.base.meta.get("of", literal.base.name)) for literal in literals})
        values = {v.name: v for v in [*dense.graph.inputs, *(out for node in dense.graph for out in node.outputs)]}
        dense.graph.outputs.clear()
        dense.graph.outputs.extend([values[name] for name in self.names])
        file = folder / "dense.onnx"
        ir.save(dense, file)
        self.session = load(file)
        file.unlink()
        self.seen: list[set[str]] = [set() for _ in parts]

    def of(self, tensors: Tensors) -> list[str]:
        feeds = {name: t.cpu().numpy() for name, t in tensors.items()}
        wanted = [v.name for v in self.session.get_inputs()]
        values = dict(zip(self.names, self.session.run(None, {n: feeds[n] for n in wanted}), strict=True))
        return [side(part.clauses, values) for part in self.parts]

    def more(self, tensors: Tensors) -> list[tuple[str, Tensors]]:
        """Inputs that take a side which those before did not."""
        found = []
        for name, other in [("as given", tensors), *variants(tensors)]:
            sides = self.of(other)
            if any(side not in seen for side, seen in zip(sides, self.seen, strict=True)):
                if other is not tensors:
                    found.append((name, other))
                for side, seen in zip(sides, self.seen, strict=True):
                    seen.add(side)
        return found

    def report(self) -> tuple[str, ...]:
        """What is skipped, and with how many of the rows it was proven."""
        order = ("no", "some", "all")
        tried = [" and ".join(s for s in order if s in seen) for seen in self.seen]
        return tuple(f"{part.text}; proven with {rows} of them" for part, rows in zip(self.parts, tried, strict=True))


def variants(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Other numbers of the same kind; every other row scaled, so that rows differ in what they choose."""
    for factor in FACTORS:
        yield f"inputs x {factor:g}", {n: t * factor if t.is_floating_point() else t for n, t in tensors.items()}
        yield f"every other row x {factor:g}", {n: alternating(t, factor) for n, t in tensors.items()}
    generator = torch.Generator().manual_seed(0)
    for seed in range(NOISES):
        yield f"noise {seed}", {n: noise(t, generator) for n, t in tensors.items()}


def alternating(t: Tensor, factor: float) -> Tensor:
    if not t.is_floating_point():
        return t
    odd = torch.arange(len(t), device=t.device) % 2 == 1
    return torch.where(odd.view(-1, *[1] * (t.dim() - 1)), t * factor, t)


def noise(t: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers as large as those given; of whole numbers only their order changes."""
    if not t.is_floating_point():
        return t.flatten()[torch.randperm(t.numel(), generator=generator).to(t.device)].view_as(t)
    random = torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
    # Rows differ in their mean too, which random numbers alone do not.
    shift = torch.randn(t.shape[:1], generator=generator, dtype=t.dtype).to(t.device)
    return (random + shift.view(-1, *[1] * (t.dim() - 1))) * t.float().square().mean().sqrt().to(t.dtype)


def side(clauses: Sequence[Clause], values: dict[str, np.ndarray]) -> str:
    rows = np.asarray(True)
    for clause in clauses:
        some = np.asarray(False)
        for literal in clause:
            some = some | holds(literal, values)
        rows = rows & some
    return "all" if rows.all() else "some" if rows.any() else "no"


def holds(literal: Literal, values: dict[str, np.ndarray]) -> np.ndarray:
    value: np.ndarray = values[str(literal.base.meta.get("of", literal.base.name))]
    if literal.pick:
        value = value.take(literal.pick[1], literal.pick[0])
    value = value == literal.equals if literal.equals is not None else value != 0
    value = value if literal.holds else ~value
    rows = [size for size, place in zip(value.shape, literal.places, strict=True) if place is not None]
    found: np.ndarray = value.reshape(rows)
    return found
