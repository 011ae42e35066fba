"""Grouped products compile for GPUs that are not here: without spills, within their shared memory, on tensor cores.

Each size of tiles is compiled in the sweep, one of each kind always.
"""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gatec.aot import LIMITS, wide
from gatec.derive import derive
from gatec.kernels import router
from gatec.kernels.grouped import Experts, linear, render

CONFIGS = ["128x128", "64x128", "64x64", "16x128"]
T, K, E, D, M = 512, 4, 64, 1024, 768  # tokens, choices, experts, widths of the model and of an expert


def softmax(logits):
    return F.softmax(logits, -1)


def swiglu(gate, up):
    return F.silu(gate) * up


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
def test_products_compile(dtype: str, configs: list[str], tmp_path: Path, binaries_of) -> None:
    file = tmp_path / "linear.py"
    file.write_text(linear().source)
    given = {"shapes": [f"{T * K}x{D}", f"{E}x{M}x{D}", str(E)], "types": [dtype, dtype, "int32"], "form": "grouped"}
    for config, target in [(configs[0], "gfx942"), *((c, "sm_90") for c in configs)]:
        found = binaries_of(file, target, config=config, **given)
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
def test_mixtures_compile(
    dtype: str, bias: bool, configs: list[str], targets: list[str], tmp_path: Path, binaries_of
) -> None:
    kind = getattr(torch, dtype)
    derived = derive(swiglu, [torch.empty(3, 5, dtype=kind)] * 2)
    plan = Experts.apart(2, biased=bias, down_bias=bias)
    made = render("experts", "tests", plan, derived.forward, derived.backward, scale=kind)
    file = tmp_path / "experts.py"
    file.write_text(made.source)
    weights = [f"{E}x{M}x{D}"] * 2 + [f"{E}x{M}"] * (2 * bias) + [f"{E}x{D}x{M}"] + [f"{E}x{D}"] * bias
    shapes, types = [f"{T}x{D}", f"{T}x{K}", f"{T}x{K}", *weights], [dtype, "int64", dtype, *([dtype] * len(weights))]
    names = {"hidden_forward", "down_forward", "hidden_backward", "x_backward", "ragged", "sort"}
    for config, target in itertools.product(configs, targets):
        found = binaries_of(file, target, shapes, "grouped", types, config=config)
        lawful(found, dtype)
        assert {b["kernel"] for b in found} == names


ROUTERS = [(128, 8, None), (256, 8, router.Groups(8, 4)), swept(8, 2, None), swept(512, 16, None)]


@pytest.mark.parametrize("columns, choices, groups", ROUTERS)
def test_routers_compile(columns: int, choices: int, groups: router.Groups | None, tmp_path: Path, binaries_of) -> None:
    derived = derive(softmax, [torch.empty(3, columns, dtype=torch.bfloat16)], rows=True)
    given = {"choices": choices, "out": torch.float32, "groups": groups}
    made = router.render("router", "tests", derived.forward, derived.backward, **given)
    file = tmp_path / f"router{columns}.py"
    file.write_text(made.source)
    for target in ("sm_90", "gfx942"):
        for binary in binaries_of(file, target, [f"8192x{columns}"], "grouped", ["bfloat16"], config=""):
            assert binary["spills"] == binary["stack"] == 0 and binary["shared"] <= 16384, binary
            if binary["kernel"] != "sort" and columns >= 8 * 64:
                assert wide(binary["instructions"], "load") >= 1, binary
