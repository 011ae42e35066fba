"""What skipping saves: onnxruntime's time for the file with branches beside the one without, by how much was chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor, nn

from gatec.bench.clock import medians
from gatec.errors import GatecError
from gatec.onnx import export

try:
    import onnxruntime
except ImportError:
    onnxruntime = None


def skipping(
    model: nn.Module, inputs: dict[str, Sequence[Tensor]], repeats: int = 20, threads: int = 1
) -> list[dict[str, Any]]:
    """A row for each kind of input, such as one that chooses no row, half of the rows, or all of them."""
    if onnxruntime is None:
        raise GatecError("onnxruntime, to measure what skipping saves", found="no such package")
    rows = []
    with TemporaryDirectory() as folder:
        first = tuple(next(iter(inputs.values())))
        skips = export(model, Path(folder) / "skipping.onnx", inputs=first, skip=True).skips
        export(model, Path(folder) / "dense.onnx", inputs=first)
        sessions = {name: session(Path(folder) / f"{name}.onnx", threads) for name in ("dense", "skipping")}
        for chosen, tensors in inputs.items():
            feeds = dict(zip([v.name for v in sessions["dense"].get_inputs()], map(numpy, tensors), strict=True))
            ways: dict[str, Callable[[], Any]] = {
                name: functools.partial(s.run, None, feeds) for name, s in sessions.items()
            }
            seconds = medians(ways, repeats)
            milliseconds = {name: round(1000 * taken, 3) for name, taken in seconds.items()}
            share = round(seconds["skipping"] / seconds["dense"], 2)
            rows.append({"chosen": chosen, **milliseconds, "share": share, "parts": len(skips)})
    return rows


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.cpu().numpy()
    return found
