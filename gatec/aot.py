"""Compile a generated kernel for a GPU that is not here, and read what the binary tells of it.

    python -m gatec.aot FILE.py --target sm_90 --shape 512x1024 --shape 1024

Its launchers are called on tensors without data, so what is compiled is exactly what would run.
Needs a process in which TRITON_INTERPRET is not set.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gatec import settings
from gatec.errors import GatecError

INSTRUCTIONS = {
    "cubin": r"\b(LDG\.E(?:\.\w+)*|LDGSTS\.E(?:\.\w+)*|STG\.E(?:\.\w+)*|LDL|STL|MUFU\.\w+|HGMMA|HMMA)\b",
    "amdgcn": r"\b((?:global|buffer)_(?:load|store)_\w+|scratch_\w+|v_mfma_\w+)\b",
}

WIDE = {
    "load": ("LDG.E.128", "global_load_dwordx4", "buffer_load_dwordx4"),
    "store": ("STG.E.128", "global_store_dwordx4", "buffer_store_dwordx4"),
}
LIMITS = {"sm_90": 232_448, "gfx942": 65_536}  # bytes of shared memory that a program may have


@dataclass(frozen=True)
class Binary:
    """One compiled kernel: what it takes of the machine, and how often it does what."""

    kernel: str
    target: str
    registers: int
    spills: int
    stack: int
    shared: int
    instructions: dict[str, int]


def surroundings() -> dict[str, str]:
    """The environment of a process that compiles: nothing is interpreted there, and GATEC_TRITON goes first."""
    found = {k: v for k, v in settings.ENVIRONMENT.items() if k != "TRITON_INTERPRET"}
    path = [settings.TRITON, *found.get("PYTHONPATH", "").split(os.pathsep)]
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def wide(instructions: Mapping[str, int], access: str) -> int:
    """How many "load"s or "store"s take 128 bits."""
    return sum(instructions.get(name, 0) for name in WIDE[access])


def targets() -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget

    return {
        **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)},
        **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
    }


class Absent:
    """The driver of a device that is known only by name."""

    def __init__(self, number: int, target: Any) -> None:
        self.number, self.target = number, target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        # triton remembers what it compiled by device, so each target is a device of its own.
        return self.number

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compiled(module: ModuleType, operands: Sequence[Tensor], target: str) -> list[Binary]:
    """Every kernel which both launchers start for these operands, which are on the meta device."""
    import triton
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    if any(isinstance(f, InterpretedFunction) for f in vars(module).values()):
        raise GatecError("compiled kernels", found="TRITON_INTERPRET in the environment")
    known = targets()
    if target not in known:
        raise GatecError("a target to compile for", found=target, hint=", ".join(known))

    found: list[Binary] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        binary = run(self, *args, **{**options, "warmup": True})
        found.append(measured(binary, self.__name__, target))
        return binary

    driver = triton.runtime.driver
    before, hip = driver._active, torch.version.hip
    driver.set_active(Absent(1000 + list(known).index(target), known[target]))
    JITFunction.run = compile_only
    torch.version.hip = target if known[target].backend == "hip" else None  # launchers ask how many threads there are
    try:
        out = module.forward(*operands)
        module.backward(out, *operands)
    finally:
        JITFunction.run = run
        driver.set_active(before)
        torch.version.hip = hip
    return found


def measured(binary: Any, name: str, target: str) -> Binary:
    kind = "cubin" if "cubin" in binary.asm else "amdgcn"
    text = binary.asm["sass" if kind == "cubin" else kind]
    counts = dict(sorted(Counter(re.findall(INSTRUCTIONS[kind], text)).items()))
    shared = int(binary.metadata.shared)
    if kind == "cubin":
        registers, stack = resources(binary.asm["cubin"])
        spills = counts.get("LDL", 0) + counts.get("STL", 0)
        return Binary(name, target, registers, spills, stack, shared, counts)

    def noted(field: str) -> int:
        return int(re.search(rf"\.{field}:\s+(\d+)", text)[1])  # type: ignore[index]

    spills = noted("vgpr_spill_count") + noted("sgpr_spill_count")
    stack = noted("private_segment_fixed_size")
    return Binary(name, target, noted("vgpr_count"), spills, stack, shared, counts)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack for each thread."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage, text
    return int(usage[1]), int(usage[2])


def read(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def operand(text: str, dtype: torch.dtype) -> Tensor:
    """`512x1024`, or with strides `512x1024:2048x1`."""
    shape, _, strides = text.partition(":")
    sizes = [int(n) for n in shape.split("x")]
    if not strides:
        return torch.empty(sizes, dtype=dtype, device="meta")
    return torch.empty_strided(sizes, [int(n) for n in strides.split("x")], dtype=dtype, device="meta")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="gatec.aot", description="compile a kernel without its GPU")
    parser.add_argument("file", type=Path)
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--shape", action="append", default=[], help="of each operand, in order")
    chosen = parser.parse_args(arguments)
    module = read(chosen.file)
    shapes = chosen.shape or ["512x1024"] * len(module.DTYPES)
    operands = [operand(s, d) for s, d in zip(shapes, module.DTYPES, strict=True)]
    rows = [asdict(b) for target in chosen.target for b in compiled(module, operands, target)]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
