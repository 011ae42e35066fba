"""Kernels of whole rows compile for GPUs that are not here, up to the longest row: without spills, with wide loads."""

from pathlib import Path

import pytest
import torch
from equations import ROWS, Region

from gatec.aot import wide
from gatec.derive import derive
from gatec.kernels.rowwise import render
from gatec.rowform import LONGEST


def stretched(region: Region, columns: int) -> list[tuple[int, ...]]:
    """The same broadcasting with many long rows."""
    row = max(s[-1] for s in region.shapes if s)
    return [tuple(columns if n == row else 1 if n == 1 else 16 for n in shape) for shape in region.shapes]


@pytest.mark.parametrize("columns", [128, LONGEST])
def test_compiles_without_spills_and_loads_wide(columns: int, tmp_path: Path, binaries_of) -> None:
    for i, region in enumerate(ROWS):
        shapes = stretched(region, columns)
        derived = derive(region.fn, [torch.empty(s, dtype=torch.bfloat16) for s in shapes], rows=True)
        file = tmp_path / f"{region.name}.py"
        file.write_text(render(region.name, "tests", derived.forward, derived.backward).source)
        sizes = ["x".join(map(str, s)) or "1" for s in shapes]
        for target in ("sm_90",) if i % 3 else ("sm_90", "gfx942"):
            for binary in binaries_of(file, target, sizes):
                assert binary["spills"] == binary["stack"] == 0, binary
                assert wide(binary["instructions"], "load") >= 1, binary
                if columns > 128:  # a short row's gradients are sums, one for each program
                    assert wide(binary["instructions"], "store") >= 1, binary
