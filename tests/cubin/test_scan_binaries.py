"""Scan kernels compile for GPUs that are not here, without spills."""

from pathlib import Path

import pytest
import torch
from recurrences import RECURRENCES

from gatec.derive import derive
from gatec.kernels.scan import Plan, render

KERNELS = ["reduce", "carries", "apply", "fold", "carries", "backward"]


def written(recurrence, dtype, folder: Path) -> tuple[Path, list[str]]:
    operands = recurrence.operands(lambda s: torch.empty(s, dtype=dtype), 64)
    file = folder / f"{recurrence.name}_{str(dtype)[6:]}.py"
    file.write_text(recurrence.kernel(operands).source)
    wide = [[128 if n == 5 else 512 if n is None else 16 if n > 1 else 1 for n in s] for s in recurrence.shapes]
    return file, ["x".join(map(str, wide[i])) for i in recurrence.order()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiles_without_spills(dtype, tmp_path, binaries_of):
    for recurrence in RECURRENCES if dtype == torch.bfloat16 else RECURRENCES[:1]:
        file, shapes = written(recurrence, dtype, tmp_path)
        for target in ("sm_90", "gfx942") if recurrence.name in ("scan", "rglru") else ("sm_90",):
            binaries = binaries_of(file, target, shapes, "scan")
            assert [b["kernel"].rpartition("_")[2] for b in binaries] == KERNELS
            for binary in binaries:
                assert binary["spills"] == binary["stack"] == 0, binary
                assert binary["registers"] <= 128, binary


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_region_compiles_without_spills(target, tmp_path, binaries_of):
    """With a first state, from the last step to the first, and a parameter that is summed inside each chunk."""
    found = next(r for r in RECURRENCES if r.name == "rglru")
    shapes = [(4, 512, 128), (128,), (4, 512, 128), (4, 512, 128)]
    operands = [torch.empty(s, dtype=torch.bfloat16) for s in shapes]
    decay, new = (
        derive(f, [operands[i] for i in of]) for f, of in ((found.decay, found.decay_of), (found.new, found.new_of))
    )
    names = tuple(n.name for n in new.forward.find_nodes(op="placeholder"))
    plan = Plan((*names, "h0"), (torch.bfloat16,) * 5, "h0", 3, 1, True)
    file = tmp_path / "region.py"
    file.write_text(render("region", "tests", decay, new, plan).source)
    binaries = binaries_of(file, target, ["x".join(map(str, s)) for s in (*shapes, (4, 128))])
    assert {b["kernel"] for b in binaries} >= {"region_reduce", "region_apply", "region_fold", "region_backward"}
    for binary in binaries:
        assert binary["spills"] == binary["stack"] == 0 and binary["registers"] <= 128, binary
