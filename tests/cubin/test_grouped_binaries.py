"""Grouped products compile for GPUs that are not here: without spills, within their shared memory, on tensor cores."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_pointwise_binaries import run
from torch.nn import functional as F

from gatec.derive import derive
from gatec.kernels.grouped import linear, render

LIMITS = {"sm_90": 232448, "gfx942": 65536}  # bytes of shared memory that a program may have
CONFIGS = ["128x128", "64x128", "64x64", "16x128"]
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch
from gatec.aot import compiled, read
class Configured:
    def __init__(self, module, config):
        self.module, self.config = module, config
        self.__dict__.update(vars(module), forward=self.run, backward=self.pull)
    def run(self, *operands):
        return self.module.forward(*operands, config=self.config)
    def pull(self, grad, *operands):
        own = {"config": self.config} if hasattr(self.module, "saving") else {}
        return self.module.backward(grad, *operands, **own)
for line in sys.stdin:
    job = json.loads(line)
    module = read(Path(job["file"]))
    operands = [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for shape, dtype in job["operands"]]
    found = compiled(Configured(module, job["config"]), operands, job["target"])
    print(json.dumps([asdict(b) for b in found]))
"""
T, K, E, D, I = 512, 4, 64, 1024, 768  # tokens, choices, experts, widths of the model and of an expert


def swiglu(gate, up):
    return F.silu(gate) * up


def binaries(file: Path, operands: list, configs: list[str], targets: list[str]) -> list[dict]:
    jobs = [{"file": str(file), "operands": operands, "config": c, "target": t} for c in configs for t in targets]
    answers = run([sys.executable, "-c", SCRIPT], "\n".join(map(json.dumps, jobs))).splitlines()
    assert len(answers) == len(jobs)
    return [b | {"config": j["config"]} for j, a in zip(jobs, answers, strict=True) for b in json.loads(a)]


def lawful(found: list[dict], dtype: str) -> None:
    for binary in found:
        assert binary["spills"] == binary["stack"] == 0, binary
        assert binary["shared"] <= LIMITS[binary["target"]], binary
        kinds = " ".join(binary["instructions"])
        if dtype != "float32":
            assert "HGMMA" in kinds or "HMMA" in kinds or "v_mfma" in kinds, binary


@pytest.mark.parametrize("dtype, configs", [("bfloat16", CONFIGS), ("float32", CONFIGS[2:])])
def test_products_compile(dtype: str, configs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "linear.py"
    file.write_text(linear().source)
    operands = [((T * K, D), dtype), ((E, I, D), dtype), ((E,), "int32")]
    found = binaries(file, operands, configs, ["sm_90", "gfx942"])
    lawful(found, dtype)
    assert {b["kernel"] for b in found} == {"linear", "ragged"}


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype, configs", [("bfloat16", CONFIGS), ("float32", CONFIGS[2:])])
def test_mixtures_compile(dtype: str, configs: list[str], bias: bool, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    derived = derive(swiglu, [torch.empty(3, 5, dtype=kind)] * 2)
    made = render("experts", "tests", derived.forward, derived.backward, scale=kind, biased=bias, down_bias=bias)
    file = tmp_path / "experts.py"
    file.write_text(made.source)
    first = [((E, I, D), dtype)] * 2 + [((E, I), dtype)] * (2 * bias)
    last = [((E, D, I), dtype), *([((E, D), dtype)] * bias)]
    operands = [((T, D), dtype), ((T * K,), "int64"), ((E,), "int64"), ((T * K, 1), dtype), *first, *last]
    # The other vendor's compiler takes its time: one tile shows that it does no worse.
    found = binaries(file, operands, configs[:1] if bias else configs, ["sm_90"])
    found += binaries(file, operands, configs[:1], ["gfx942"]) if not bias else []
    lawful(found, dtype)
    names = {"hidden_forward", "down_forward", "hidden_backward", "x_backward", "ragged"}
    assert {b["kernel"] for b in found} == names
