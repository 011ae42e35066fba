"""Grouped products compile for GPUs that are not here: without spills, within their shared memory, on tensor cores.

Each size of tiles is compiled in the sweep, one of each kind always.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_pointwise_binaries import run
from torch.nn import functional as F

from gatec.aot import wide
from gatec.derive import derive
from gatec.kernels import router
from gatec.kernels.grouped import Experts, linear, render

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
        if hasattr(self.module, "route"):
            self.module.sorted_pairs(self.module.chosen(*operands)[1], 64)
        own = {"config": self.config} if self.config else {}
        return self.module.forward(*operands, **own)
    def pull(self, grad, *operands):
        own = {"config": self.config} if hasattr(self.module, "forward_keeping") else {}
        return self.module.backward(grad, *operands, **own)
for line in sys.stdin:
    job = json.loads(line)
    module = read(Path(job["file"]))
    operands = [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for shape, dtype in job["operands"]]
    found = compiled(Configured(module, job["config"]), operands, job["target"])
    print(json.dumps([asdict(b) for b in found]))
"""
T, K, E, D, M = 512, 4, 64, 1024, 768  # tokens, choices, experts, widths of the model and of an expert


def softmax(logits):
    return F.softmax(logits, -1)


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
        if dtype != "float32" and binary["kernel"] != "sort":
            assert "HGMMA" in kinds or "HMMA" in kinds or "v_mfma" in kinds, binary


def swept(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.sweep)


@pytest.mark.parametrize(
    "dtype, configs", [("bfloat16", CONFIGS[:1]), swept("bfloat16", CONFIGS), swept("float32", CONFIGS[2:])]
)
def test_products_compile(dtype: str, configs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "linear.py"
    file.write_text(linear().source)
    operands = [((T * K, D), dtype), ((E, M, D), dtype), ((E,), "int32")]
    found = binaries(file, operands, configs[:1], ["gfx942"]) + binaries(file, operands, configs, ["sm_90"])
    lawful(found, dtype)
    assert {b["kernel"] for b in found} == {"linear", "ragged"}


@pytest.mark.parametrize(
    "dtype, bias, configs, targets",
    [
        ("bfloat16", True, CONFIGS[:1], ["sm_90"]),
        swept("bfloat16", False, CONFIGS, ["sm_90"]),
        swept("bfloat16", False, CONFIGS[:1], ["gfx942"]),
        swept("float32", False, CONFIGS[2:3], ["sm_90"]),
    ],
)
def test_mixtures_compile(dtype: str, bias: bool, configs: list[str], targets: list[str], tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    derived = derive(swiglu, [torch.empty(3, 5, dtype=kind)] * 2)
    plan = Experts.apart(2, biased=bias, down_bias=bias)
    made = render("experts", "tests", plan, derived.forward, derived.backward, scale=kind)
    file = tmp_path / "experts.py"
    file.write_text(made.source)
    first = [((E, M, D), dtype)] * 2 + [((E, M), dtype)] * (2 * bias)
    last = [((E, D, M), dtype), *([((E, D), dtype)] * bias)]
    operands = [((T, D), dtype), ((T, K), "int64"), ((T, K), dtype), *first, *last]
    found = binaries(file, operands, configs, targets)
    lawful(found, dtype)
    names = {"hidden_forward", "down_forward", "hidden_backward", "x_backward", "ragged", "sort"}
    assert {b["kernel"] for b in found} == names


ROUTERS = [(128, 8, None), (256, 8, router.Groups(8, 4)), swept(8, 2, None), swept(512, 16, None)]


@pytest.mark.parametrize("columns, choices, groups", ROUTERS)
def test_routers_compile(columns: int, choices: int, groups: router.Groups | None, tmp_path: Path) -> None:
    derived = derive(softmax, [torch.empty(3, columns, dtype=torch.bfloat16)], rows=True)
    given = {"choices": choices, "out": torch.float32, "groups": groups}
    made = router.render("router", "tests", derived.forward, derived.backward, **given)
    file = tmp_path / f"router{columns}.py"
    file.write_text(made.source)
    for binary in binaries(file, [((8192, columns), "bfloat16")], [""], ["sm_90", "gfx942"]):
        assert binary["spills"] == binary["stack"] == 0 and binary["shared"] <= 16384, binary
        if binary["kernel"] != "sort" and columns >= 8 * 64:
            assert wide(binary["instructions"], "load") >= 1, binary
