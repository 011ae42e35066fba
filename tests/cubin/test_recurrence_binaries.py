"""The kernels of a recurrence over matrices compile for GPUs that are not here, without spills."""

import itertools
from pathlib import Path

import pytest
import torch

from gatec.aot import LIMITS
from gatec.kernels.recurrence import render

WALKS = ["walk", "read_states"]


def written(kind: str, dtype: torch.dtype, keys: int, values: int, folder: Path) -> tuple[Path, list[str]]:
    widths = [keys, keys, values, *({"none": [], "shared": [1], "keyed": [keys]}[kind])]
    file = folder / f"{kind}_{str(dtype)[6:]}_{keys}_{values}.py"
    file.write_text(render(kind, (*(dtype for _ in widths), torch.float32), dtype, True).source)
    return file, [*(f"2x4x512x{n}" for n in widths), f"2x4x{keys}x{values}"]


@pytest.mark.parametrize(
    ("kinds", "dtype", "keys", "values"),
    [
        (["keyed"], torch.bfloat16, 128, 128),
        pytest.param(["none", "shared"], torch.bfloat16, 128, 128, marks=pytest.mark.sweep),
        pytest.param(["none", "shared", "keyed"], torch.float32, 64, 128, marks=pytest.mark.sweep),
        pytest.param(["none", "shared", "keyed"], torch.float16, 16, 16, marks=pytest.mark.sweep),
    ],
    ids=str,
)
def test_compiles_without_spills(kinds, dtype, keys, values, tmp_path, binaries_of):
    for kind, target in itertools.product(kinds, ("sm_90", "gfx942")):
        file, shapes = written(kind, dtype, keys, values, tmp_path)
        binaries = binaries_of(file, target, shapes, "recurrence")
        assert [b["kernel"] for b in binaries] == [*WALKS, *WALKS, "walk", "pull"]
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0, binary
            assert binary["shared"] <= LIMITS[binary["target"]] // 2, binary
