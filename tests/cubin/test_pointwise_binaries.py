"""Pointwise kernels compile for GPUs that are not here: without spills, with wide loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equations import REGIONS, Region

from gatec import settings
from gatec.aot import surroundings, wide
from gatec.derive import derive
from gatec.kernels.pointwise import render

DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.sweep), torch.float32]


def shape_text(shape: tuple[int, ...]) -> str:
    """The same broadcasting at sizes that vectors divide."""
    return "x".join(str(1 if n == 1 else 512 if i == len(shape) - 1 else 16) for i, n in enumerate(shape))


def fits(region: Region) -> bool:
    return all(region.shapes)


def run(arguments: list[str], stdin: str = "") -> str:
    done = attempt(arguments, stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(arguments: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, input=stdin, env=surroundings(), text=True, capture_output=True)


def written(region: Region, dtype: torch.dtype, folder: Path) -> Path:
    derived = derive(region.fn, [torch.empty(s, dtype=dtype) for s in region.shapes])
    file = folder / f"{region.name}.py"
    file.write_text(render(region.name, "tests", derived.forward, derived.backward).source)
    return file


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiles_without_spills_and_loads_wide(dtype: torch.dtype, tmp_path: Path, binaries_of) -> None:
    # All of them where the bar is highest. The other types and the other vendor's slow compiler see
    # the same text, so every third region shows that they do no worse.
    brief = dtype != torch.bfloat16
    for i, region in enumerate(filter(fits, REGIONS)):
        if brief and i % 3:
            continue
        file, shapes = written(region, dtype, tmp_path), list(map(shape_text, region.shapes))
        for target in ("sm_90",) if brief or i % 3 else ("sm_90", "gfx942"):
            for binary in binaries_of(file, target, shapes):
                assert binary["spills"] == binary["stack"] == 0, binary
                assert binary["registers"] <= 128, binary
                if "outer" not in region.name:
                    assert wide(binary["instructions"], "load") >= 1, binary
                    assert wide(binary["instructions"], "store") >= 1, binary


def test_command_line_on_packed_halves(tmp_path: Path) -> None:
    file = written(REGIONS[0], torch.bfloat16, tmp_path)
    half = ["--shape", "512x1024:2048x1"]
    answer = run([sys.executable, "-m", "gatec.aot", str(file), "--target", "sm_90", *half, *half])
    forward, backward = json.loads(answer)
    assert (forward["kernel"], backward["kernel"]) == ("swiglu_forward", "swiglu_backward")
    counts = [[wide(b["instructions"], access) for access in ("load", "store")] for b in (forward, backward)]
    assert counts == [[2, 1], [3, 2]]


def test_the_triton_that_was_asked_for_compiles(tmp_path: Path) -> None:
    found = run([sys.executable, "-c", "import triton; print(triton.__file__)"]).strip()
    assert found.startswith(settings.TRITON)
    (tmp_path / "triton.py").write_text("raise RuntimeError('this is another triton')")
    script = "from gatec import aot, settings; settings.TRITON = '{}'; import subprocess, sys; "
    script += "sys.exit(subprocess.run([sys.executable, '-c', 'import triton'], env=aot.surroundings()).returncode)"
    assert "this is another triton" in attempt([sys.executable, "-c", script.format(tmp_path)]).stderr


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    file = written(REGIONS[0], torch.bfloat16, tmp_path)
    command = [sys.executable, "-m", "gatec.aot", str(file), "--target", "sm_1"]
    done = attempt(command)
    assert "gatec: a target to compile for\n  found sm_1\n  try   sm_80, sm_90, sm_100" in done.stderr
