"""GEMM kernels compile for GPUs that are not here: every size of tiles without spills, within shared memory, on tensor cores."""

from pathlib import Path

import pytest
import torch
from gemms import gates

from gatec.aot import LIMITS, wide

LINES = {
    torch.bfloat16: [
        "swiglu sm_90 all",
        "output_gate sm_90 one",
        "geglu sm_90 one",
        "three sm_90 all",
        "swiglu gfx942 all",
    ],
    torch.float32: ["swiglu sm_90 one", "residual gfx942 one"],
}


@pytest.mark.parametrize("dtype", LINES, ids=str)
def test_compiles_without_spills_within_shared_memory(dtype: torch.dtype, tmp_path: Path, binaries_of) -> None:
    known = {g.name: g for g in gates(4096, 1024, 1024)}
    for line in LINES[dtype]:
        name, target, which = line.split()
        file = tmp_path / f"{name}.py"
        file.write_text(known[name].kernel(dtype).source)
        shapes = ["x".join(map(str, s)) for s in known[name].shapes.values()]
        for binary in binaries_of(file, target, shapes, "gemm", every=which == "all"):
            assert binary["spills"] == binary["stack"] == 0, binary
            assert binary["shared"] <= LIMITS[target], binary
            if "forward" not in binary["kernel"]:  # pointwise
                assert min(wide(binary["instructions"], access) for access in ("load", "store")) >= 1, binary
            elif target == "sm_90" and dtype == torch.bfloat16:
                assert binary["tiles"].startswith("16x") or binary["instructions"]["HGMMA"] >= 4, binary
