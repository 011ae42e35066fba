"""Scan kernels compile for GPUs that are not here, without spills."""

import json
import sys
from pathlib import Path

import pytest
import torch
from recurrences import RECURRENCES
from test_pointwise_binaries import SCRIPT as PLAIN
from test_pointwise_binaries import run

from gatec.derive import derive
from gatec.kernels.scan import Plan, render

SCRIPT = PLAIN.replace("compiled(module, operands, target)", "compiled(Whole(module), operands, target)").replace(
    "for line in sys.stdin", "from scan_module import Whole\nfor line in sys.stdin"
)


def written(recurrence, dtype, folder: Path) -> str:
    operands = recurrence.operands(lambda s: torch.empty(s, dtype=dtype), 64)
    file = folder / f"{recurrence.name}_{str(dtype)[6:]}.py"
    file.write_text(recurrence.kernel(operands).source)
    wide = [[128 if n == 5 else 512 if n is None else 16 if n > 1 else 1 for n in s] for s in recurrence.shapes]
    shapes = ["x".join(map(str, wide[i])) for i in recurrence.order()]
    return f"{file} {{}} {' '.join(shapes)}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiles_without_spills(dtype, tmp_path):
    chosen = RECURRENCES if dtype == torch.bfloat16 else RECURRENCES[:1]
    pairs = [(r, t) for r in chosen for t in ("sm_90", "gfx942") if t == "sm_90" or r.name in ("scan", "rglru")]
    lines = [written(r, dtype, tmp_path).format(t) for r, t in pairs]
    (tmp_path / "scan_module.py").write_text(WHOLE)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"
    answers = run([sys.executable, "-c", script], "\n".join(lines)).splitlines()
    assert len(answers) == len(lines)
    for answer in answers:
        binaries = json.loads(answer)
        assert [b["kernel"].rpartition("_")[2] for b in binaries] == [
            "reduce",
            "carries",
            "apply",
            "fold",
            "carries",
            "backward",
        ]
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0, binary
            assert binary["registers"] <= 128, binary


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_region_compiles_without_spills(target, tmp_path):
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
    line = " ".join([str(file), target, *("x".join(map(str, s)) for s in (*shapes, (4, 128)))])
    binaries = json.loads(run([sys.executable, "-c", PLAIN], line))
    assert {b["kernel"] for b in binaries} >= {"region_reduce", "region_apply", "region_fold", "region_backward"}
    for binary in binaries:
        assert binary["spills"] == binary["stack"] == 0 and binary["registers"] <= 128, binary


# What gatec.aot compiles is a module whose backward takes the gradient and the operands; this one takes the states too.
WHOLE = """
class Whole:
    def __init__(self, module):
        self.module = module

    def forward(self, *operands):
        return self.module.forward(*operands)

    def backward(self, grad, *operands):
        return self.module.backward(grad, grad, *operands)
"""
