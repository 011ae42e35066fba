"""Measurements that anyone can repeat: each is a function that returns rows; `gatec bench NAME` prints and keeps them."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gatec.bench.compiling import compiling
from gatec.bench.conversion import conversion
from gatec.bench.coverage import coverage as sweep
from gatec.bench.depth import depths
from gatec.bench.experts_onnx import experts_onnx
from gatec.bench.matrices import matrices
from gatec.bench.papers import literature
from gatec.bench.partitions import partitions
from gatec.bench.pruning import pruning as prune
from gatec.bench.running import running
from gatec.bench.scan import scan
from gatec.bench.small.quality import moe, quality
from gatec.errors import GatecError

Row = dict[str, Any]
BENCHMARKS: dict[str, Callable[..., list[Row]]] = {
    "convert": conversion, "moe": moe, "moe-quality": quality, "moe-onnx": experts_onnx,
    "partition": partitions, "capture": depths, "coverage": sweep, "papers": literature,
    "scan": scan, "matrices": matrices, "compile": compiling, "kernels": running, "prune": prune,
}  # fmt: skip
PACKAGES = (
    "diffusers", "flash-linear-attention", "k-means-constrained", "liger-kernel", "scattermoe", "timm", "torch-pruning",
    "torch-rechub", "torchfm", "torchvision", "transformers", "triton",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def run(name: str, **options: Any) -> list[Row]:
    """The rows of one benchmark; every time is compared with a peer in the same run."""
    if name not in BENCHMARKS:
        raise GatecError(
            f"a benchmark named {name!r}", found=f"benchmarks: {', '.join(BENCHMARKS)}", hint="gatec bench convert"
        )
    return BENCHMARKS[name](**options)


def keep(name: str, rows: list[Row], folder: Path = RESULTS) -> Path:
    """Write the rows with what they were measured on: device, versions, commit."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    about = {
        "benchmark": name,
        "device": device,
        "torch": torch.__version__,
        "commit": _commit(),
        "versions": versions(),
    }
    file = folder / f"{name}-{'gpu' if torch.cuda.is_available() else 'cpu'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return file


def versions() -> dict[str, str]:
    """Of the packages whose models or kernels are measured, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
