"""Which of two ways to run a region: the kernel only where it was verified on this device and measured faster there.

One JSON file per region and device under the cache folder, written atomically; an unknown key is measured once.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatec import settings

FASTER = 0.97  # of eager's median; less is noise
LAUNCH_BOUND = 50e-3  # milliseconds: below it the launch is what is measured, and eager keeps the region
Run = Callable[..., Any]
_TABLES: dict[str, dict[str, str]] = {}


def choice(region: str, side: str, ways: Mapping[str, Run], eager: Run, exact: Run, tensors: Sequence[Tensor]) -> Run:
    """One of `ways`, or `eager`, for these operands; `exact` computes the truth in float64."""
    device = tensors[0].device
    table, key = _table(region, device), _key(side, tensors)
    if key not in table and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        table[key] = _best(ways, eager, exact, tensors)
        _write(region, device, table)
    return ways.get(table.get(key, ""), eager)


def _best(ways: Mapping[str, Run], eager: Run, exact: Run, tensors: Sequence[Tensor]) -> str:
    """The name of the fastest way that is right and faster than eager, or why there is none."""
    found = {name: _measured(way, eager, exact, tensors) for name, way in ways.items()}
    times = {name: ratio for name, ratio in found.items() if isinstance(ratio, float)}
    fastest = min(times, key=lambda name: times[name], default="")
    if fastest and times[fastest] < FASTER:
        return fastest
    return f"slower: {times[fastest]:.2f}x of eager" if fastest else "; ".join(map(str, found.values()))


def _key(side: str, tensors: Sequence[Tensor]) -> str:
    """Side, dtypes, trailing sizes, which operands are dense, and the power of two of the number of rows."""
    forms = [f"{str(t.dtype)[6:]}:{t.shape[-1] if t.ndim else 1}:{int(t.is_contiguous())}" for t in tensors]
    rows = max(t.numel() // max(t.shape[-1] if t.ndim else 1, 1) for t in tensors)
    return "/".join([side, *forms, str(max(rows, 1).bit_length())])


def _measured(kernel: Run, eager: Run, exact: Run, tensors: Sequence[Tensor]) -> str | float:
    """The kernel's time over eager's where it is as right (error at most twice eager's), or why it was not measured."""
    try:
        truth = _flat(exact(*(t.double() if t.is_floating_point() else t for t in tensors)))
        found, wanted = _flat(kernel(*tensors)), _flat(eager(*tensors))
        torch.cuda.synchronize()
    except Exception as e:  # a kernel that cannot run here is a reason, never a crash of the user's forward
        return f"failed: {type(e).__name__}: {str(e)[:160]}"
    for f, w, t in zip(found, wanted, truth, strict=True):
        floor = torch.finfo(w.dtype).eps * float(t.abs().max())
        if not float((f - t).abs().max()) <= 2 * max(float((w - t).abs().max()), floor):
            return "inexact"
    ours, theirs = _timed(kernel, eager, tensors)
    if theirs < LAUNCH_BOUND:
        return "launch bound"
    return ours / theirs


def _flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if v is not None]


def _timed(a: Run, b: Run, tensors: Sequence[Tensor], rounds: int = 12) -> tuple[float, float]:
    """Median milliseconds of each, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 3):
        for run, kept in zip((a, b), times, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(*tensors)
            end.record()
            end.synchronize()
            if i >= 3:
                kept.append(start.elapsed_time(end))
    return statistics.median(times[0]), statistics.median(times[1])


# -- the table on disk ------------------------------------------------------------------------------------------------


@functools.cache
def _file(region: str, device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device).replace(" ", "-") if device.type == "cuda" else device.type
    return settings.CACHE / f"{region}-{name}-torch{torch.__version__.split('+')[0]}.json"


def _table(region: str, device: torch.device) -> dict[str, str]:
    file = _file(region, device)
    if file.name not in _TABLES:
        try:
            _TABLES[file.name] = dict(json.loads(file.read_text()))
        except (OSError, ValueError):
            _TABLES[file.name] = {}
    return _TABLES[file.name]


def _write(region: str, device: torch.device, table: dict[str, str]) -> None:
    file = _file(region, device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)
        with open(handle, "w") as f:
            json.dump(table, f, indent=1, sort_keys=True)
        Path(name).replace(file)
    except OSError:
        return  # a read-only home: measured again next time
