"""The kernels of a recurrence over matrices compile for GPUs that are not here, without spills."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_pointwise_binaries import SCRIPT as PLAIN
from test_pointwise_binaries import run

from gatec.aot import LIMITS
from gatec.kernels.recurrence import render

SCRIPT = PLAIN.replace("compiled(module, operands, target)", "compiled(Whole(module), operands, target)").replace(
    "for line in sys.stdin", "from whole_module import Whole\nfor line in sys.stdin"
)
# What gatec.aot compiles is a module whose backward takes one gradient; this one takes that of the last state too.
WHOLE = """
class Whole:
    def __init__(self, module):
        self.module = module

    def forward(self, *operands):
        return self.module.forward(*operands)

    def backward(self, grads, *operands):
        return self.module.backward(*grads, *operands)
"""
WALKS = ["walk", "read_states"]


def written(kind: str, dtype: torch.dtype, keys: int, values: int, folder: Path) -> str:
    widths = [keys, keys, values, *({"none": [], "shared": [1], "keyed": [keys]}[kind])]
    file = folder / f"{kind}_{str(dtype)[6:]}_{keys}_{values}.py"
    file.write_text(render(kind, (*(dtype for _ in widths), torch.float32), dtype, True).source)
    return " ".join([f"{file} {{}}", *(f"2x4x512x{n}" for n in widths), f"2x4x{keys}x{values}"])


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
def test_compiles_without_spills(kinds, dtype, keys, values, tmp_path):
    texts = [written(kind, dtype, keys, values, tmp_path) for kind in kinds]
    lines = [text.format(target) for text in texts for target in ("sm_90", "gfx942")]
    (tmp_path / "whole_module.py").write_text(WHOLE)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"
    answers = run([sys.executable, "-c", script], "\n".join(lines)).splitlines()
    assert len(answers) == len(lines)
    for answer in answers:
        binaries = json.loads(answer)
        assert [b["kernel"] for b in binaries] == [*WALKS, *WALKS, "walk", "pull"]
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0, binary
            assert binary["shared"] <= LIMITS[binary["target"]] // 2, binary
