"""The kernels of a recurrence over matrices compile for GPUs that are not here, without spills."""

import itertools
from pathlib import Path

import pytest
import torch

from gatec.aot import LIMITS
from gatec.kernels.recurrence import render

WALKS = ["walk", "read_states"]
EVERY = ["none", "shared", "keyed"]


def written(kind: str, dtype: torch.dtype, keys: int, values: int, delta: bool, folder: Path) -> tuple[Path, list[str]]:
    widths = [keys, keys, values, *({"none": [], "shared": [1], "keyed": [keys]}[kind]), *[keys, keys] * delta]
    file = folder / f"{kind}_{str(dtype)[6:]}_{keys}_{values}.py"
    file.write_text(render(kind, (*(dtype for _ in widths), torch.float32), dtype, True, delta).source)
    return file, [*(f"2x4x512x{n}" for n in widths), f"2x4x{keys}x{values}"]


@pytest.mark.parametrize(
    ("kinds", "dtype", "keys", "values", "delta"),
    [
        (["keyed"], torch.bfloat16, 128, 128, False),
        (["shared"], torch.bfloat16, 128, 128, True),
        pytest.param(["none", "shared"], torch.bfloat16, 128, 128, False, marks=pytest.mark.sweep),
        pytest.param(["none", "keyed"], torch.bfloat16, 128, 128, True, marks=pytest.mark.sweep),
        *(
            pytest.param(EVERY, dtype, keys, values, delta, marks=pytest.mark.sweep)
            for dtype, keys, values in ((torch.float32, 64, 128), (torch.float16, 16, 16))
            for delta in (False, True)
        ),
    ],
    ids=str,
)
def test_compiles_without_spills(kinds, dtype, keys, values, delta, tmp_path, binaries_of):
    for kind, target in itertools.product(kinds, ("sm_90", "gfx942")):
        file, shapes = written(kind, dtype, keys, values, delta, tmp_path)
        binaries = binaries_of(file, target, shapes, "recurrence")
        forward = ["solve", *WALKS] if delta else WALKS
        assert [b["kernel"] for b in binaries] == [*forward * 2, *forward[:-1], "pull"]
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0, binary
            # The walk of a delta rule holds all keys, so a processor may have but one.
            most = 1 if delta and binary["kernel"] == "walk" else 2
            assert binary["shared"] <= LIMITS[target] // most, binary
