"""GEMM kernels compile for GPUs that are not here: every size of tiles without spills, within shared memory, on tensor cores."""

import json
import sys
from pathlib import Path

import pytest
import torch
from gemms import gates
from test_pointwise_binaries import run

from gatec.aot import LIMITS, wide

SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
import torch
from gatec.aot import compiled, operand, read
for line in sys.stdin:
    file, target, which, *shapes = line.split()
    module = read(Path(file))
    operands = [operand(s, d) for s, d in zip(shapes, module.DTYPES, strict=True)]
    for tiles in list(module.TILES)[: None if which == "all" else 1]:
        one = SimpleNamespace(**vars(module))
        one.forward = lambda *xs: module.forward_keeping(*xs, tiles=tiles)[0]
        if tiles != module.FIRST:
            one.backward = lambda *xs: None
        print(json.dumps([tiles, [asdict(b) for b in compiled(one, operands, target)]]))
"""
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
def test_compiles_without_spills_within_shared_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    known, lines = {g.name: g for g in gates(4096, 1024, 1024)}, []
    for line in LINES[dtype]:
        name, target, which = line.split()
        file = tmp_path / f"{name}.py"
        file.write_text(known[name].kernel(dtype).source)
        lines.append(
            " ".join([str(file), target, which, *("x".join(map(str, s)) for s in known[name].shapes.values())])
        )
    answers = run([sys.executable, "-c", SCRIPT], "\n".join(lines)).splitlines()
    assert len(answers) >= len(lines)
    for tiles, binaries in map(json.loads, answers):
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0, (tiles, binary)
            assert binary["shared"] <= LIMITS[binary["target"]], (tiles, binary)
            if "forward" not in binary["kernel"]:  # pointwise
                assert min(wide(binary["instructions"], access) for access in ("load", "store")) >= 1, binary
            if binary["target"] == "sm_90" and dtype == torch.bfloat16 and "forward" in binary["kernel"]:
                assert tiles.startswith("16x") or binary["instructions"]["HGMMA"] >= 4, (tiles, binary)
