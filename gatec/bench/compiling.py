"""What compiled kernels take of GPUs that are not here: registers, spills, shared memory, how wide they load and store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gatec.aot import surroundings, wide
from gatec.bench.builds import BUILDS, Build
from gatec.errors import GatecError

# Kernels are compiled in a process of their own: triton decides at its first import whether it interprets.
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch
from gatec.aot import compiled, read

class Called:
    def __init__(self, job):
        self.job, self.module = job, read(Path(job["file"]))
        self.__dict__.update(vars(self.module), forward=self.ahead, backward=self.back)

    def ahead(self, *operands):
        out = getattr(self.module, self.job["call"])(*operands, **self.job["forward"])
        self.last = out[-1] if isinstance(out, tuple) else out
        return out[0] if isinstance(out, tuple) else out

    def back(self, out, *operands):
        if self.job["backward"] is not None:
            state = [self.last] if self.job["state"] else []
            self.module.backward(out, *state, *operands, **self.job["backward"])

for line in sys.stdin:
    job = json.loads(line)
    operands = [torch.empty(shape, dtype=getattr(torch, kind), device="meta") for shape, kind in job["operands"]]
    found = compiled(Called(job), operands, job["target"])
    print(json.dumps([{"case": job["name"], "way": job["way"]} | asdict(b) for b in found]))
"""
# Copies from memory past the registers, and products of matrices, by the names of both assemblers.
COUNTED = {"copies": r"LDGSTS\.E(\.\w+)*\.128", "products": r"HGMMA|HMMA|v_mfma_\w+"}


def compiling(
    dtype: torch.dtype = torch.bfloat16, path: str = "", builds: Sequence[Build] = BUILDS
) -> list[dict[str, Any]]:
    """A row for each kernel, target and size of tiles; `path` goes in front of the module path, for another triton."""
    with TemporaryDirectory() as folder:
        jobs = []
        for build in builds:
            file = Path(folder) / f"{build.name}.py"
            file.write_text(build.source(dtype).source)
            jobs += build.jobs(str(file), dtype)
        answers = _apart([json.dumps(job) for job in jobs], path)
    rows = [_row(binary) for answer in answers for binary in json.loads(answer)]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]  # some kernels are launched twice


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
    row = {**binary, "loads": wide(counts, "load"), "stores": wide(counts, "store")}
    for word, names in COUNTED.items():
        row[word] = sum(count for name, count in counts.items() if re.fullmatch(names, name))
    return row
