"""What compiled kernels take of GPUs that are not here: registers, spills, shared memory, how wide they load and store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gatec.aot import surroundings, wide
from gatec.bench.workloads import WORKLOADS
from gatec.errors import GatecError

TARGETS = ("sm_90", "gfx942")
# Kernels are compiled in a process of their own: triton decides at its first import whether it interprets.
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from gatec.aot import compiled, operand, read
for line in sys.stdin:
    file, target, *shapes = line.split()
    module = read(Path(file))
    operands = [operand(s, d) for s, d in zip(shapes, module.DTYPES, strict=True)]
    print(json.dumps([asdict(b) for b in compiled(module, operands, target)]))
"""


def compiling(dtype: torch.dtype = torch.bfloat16, path: str = "") -> list[dict[str, Any]]:
    """A row for each kernel and target; `path` is put in front of the module path, to compile with another triton."""
    with TemporaryDirectory() as folder:
        jobs = []
        for work in WORKLOADS:
            file = Path(folder) / f"{work.name}.py"
            file.write_text(work.kernel(dtype).source)
            sizes = " ".join("x".join(map(str, shape)) for shape in work.shapes)
            jobs += [f"{file} {target} {sizes}" for target in TARGETS]
        answers = _apart(jobs, path)
    return [_row(binary) for answer in answers for binary in json.loads(answer)]


def _apart(jobs: list[str], path: str) -> list[str]:
    here = str(Path(__file__).parents[2])
    environment = surroundings()
    environment["PYTHONPATH"] = ":".join(filter(None, (path, environment["PYTHONPATH"], here)))
    done = subprocess.run([sys.executable, "-c", SCRIPT], input="\n".join(jobs), env=environment, text=True,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        raise GatecError("kernels that compile", found=(done.stderr.strip().splitlines() or ["nothing said"])[-1])
    return done.stdout.splitlines()


def _row(binary: dict[str, Any]) -> dict[str, Any]:
    counts = binary.pop("instructions")
    return binary | {"loads": wide(counts, "load"), "stores": wide(counts, "store")}
