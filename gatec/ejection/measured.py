"""The choices that travel with a package: what is in the table of dispatch for its functions, measured now if asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatec.dispatch import CHOOSER, Budget, Run, Side
from gatec.dispatch.forms import Form
from gatec.errors import GatecError
from gatec.lower import DEVICE, sides
from gatec.making import Made

ABOUT = {"region", "side", "ways", "dtypes", "operands"}  # the rest of a key says on what it was measured


@dataclass
class Measurable:
    """A function of a package: its kernel, its eager form, and operands that it was found with."""

    made: Made
    run: Run
    examples: list[Tensor]


def choices(functions: Mapping[str, Measurable]) -> dict[str, list[dict[str, Any]]]:
    """By function, an entry for every answer that the table has."""
    return {name: [*_entries(sides(function.made, function.run))] for name, function in functions.items()}


def measure(functions: Iterable[Measurable], device: torch.device, seconds: float) -> None:
    """Verify and measure each function for the sizes that it was found with; the answers are in the table then."""
    if not seconds > 0:
        raise GatecError("a budget in seconds", found=repr(seconds), hint="gatec.eject(model, folder, inputs, tune=60)")
    if device.type != DEVICE.lower():
        raise GatecError("a model on a device that has kernels to choose", found=str(device), hint='model.to("cuda")')
    generator = torch.Generator().manual_seed(0)
    with CHOOSER.waiting(Budget(1000 * seconds, 1000 * seconds)):
        for function in functions:
            operands = [
                Form.bare(torch.empty_like(x, device="meta")).make(device, generator) for x in function.examples
            ]
            for side in sides(function.made, function.run):
                CHOOSER.way(side, operands)


def _entries(both: Iterable[Side]) -> Iterable[dict[str, Any]]:
    for side in both:
        for key, record in CHOOSER.table.about(side.region):
            if key.fields.get("side") == side.name and "operands" in key.fields:
                yield {
                    "side": side.name, "operands": key.fields["operands"], "way": record.way, "why": record.why,
                    "times": dict(record.times),
                    "identity": {k: v for k, v in key.fields.items() if k not in ABOUT},
                }  # fmt: skip
