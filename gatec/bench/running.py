"""Generated kernels beside eager and torch.compile on a CUDA device, forward and with gradients, measured in turns in one run.

Where there is no device the rows say what a roofline expects, and that nothing was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gatec.bench.workloads import WORKLOADS, Workload
from gatec.roofline import in_bytes, in_seconds, machine

Row = dict[str, Any]
ROUNDS = 20


def running(dtype: torch.dtype = torch.bfloat16) -> list[Row]:
    """Milliseconds of each way, times over the kernel's, the kernel's share of a copy's bandwidth, its error over eager's."""
    if not torch.cuda.is_available():
        return [expected(work, dtype) for work in WORKLOADS]
    bandwidth = copied()
    return [row for work in WORKLOADS for row in measured(work, dtype, bandwidth)]


def expected(work: Workload, dtype: torch.dtype) -> Row:
    moved, h200 = work.bytes(dtype), machine("h200")
    return {"workload": work.name, "moves": in_bytes(moved), "H200 at best": in_seconds(moved / h200.bandwidth),
            "measured": "no: there is no CUDA device"}  # fmt: skip


def measured(work: Workload, dtype: torch.dtype, bandwidth: float) -> list[Row]:
    """A row for the value alone and one with the gradients of all operands."""
    operands = [x.requires_grad_() for x in work.operands(dtype, "cuda")]
    grad = torch.randn_like(work.fn(*operands))
    ways = {"eager": work.fn, "compile": torch.compile(work.fn, dynamic=False),
            "max_autotune": torch.compile(work.fn, mode="max-autotune-no-cudagraphs", dynamic=False)}  # fmt: skip
    kernel = work.kernel(dtype)
    wrong = error_over_eager(work, kernel, operands, grad)
    forward: dict[str, Callable[[], Any]] = {name: _alone(way, operands) for name, way in ways.items()}
    both: dict[str, Callable[[], Any]] = {name: _trained(way, operands, grad) for name, way in ways.items()}
    plain = [x.detach() for x in operands]
    forward["gatec"] = lambda: kernel.forward(*plain)
    both["gatec"] = lambda: (kernel.forward(*plain), kernel.backward(grad, *plain))
    rows = []
    for side, runs, moved in (("forward", forward, work.bytes(dtype)), ("both", both, work.bytes(dtype, trained=True))):
        times = in_turns(runs)
        row: Row = {"workload": work.name, "side": side, **{f"{n} ms": round(1e3 * t, 4) for n, t in times.items()}}
        row |= {f"{n} / gatec": round(times[n] / times["gatec"], 3) for n in ways}
        rows.append(row | {"of copy": round(moved / times["gatec"] / bandwidth, 3), "error / eager's": round(wrong, 2)})
    return rows


def _alone(way: Callable[..., Tensor], operands: list[Tensor]) -> Callable[[], Any]:
    plain = [x.detach() for x in operands]
    return lambda: way(*plain)


def _trained(way: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(way(*operands), operands, grad)


def error_over_eager(work: Workload, kernel: Any, operands: list[Tensor], grad: Tensor) -> float:
    """The largest error of the kernel's value and gradients against float64, over eager's own."""
    wide = [x.detach().double().requires_grad_() for x in operands]
    truth, theirs = (_results(work.fn, xs, g) for xs, g in ((wide, grad.double()), (operands, grad)))
    plain = [x.detach() for x in operands]
    ours = [kernel.forward(*plain), *kernel.backward(grad, *plain)]
    ratios = []
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        floor = torch.finfo(mine.dtype).eps * float(true.abs().max())
        apart = [float((x.double() - true).abs().max()) for x in (mine, other)]
        ratios.append(apart[0] / max(apart[1], floor))
    return max(ratios)


def _results(fn: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = fn(*operands)
    return [out.detach(), *torch.autograd.grad(out, operands, grad)]


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each on the device, after three rounds that are not counted; caches are flushed between."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= 3:
                taken[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def copied(size: int = 1 << 30) -> float:
    """Bytes per second that a copy of a gigabyte reads and writes."""
    source = torch.empty(size, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / in_turns({"copy": lambda: target.copy_(source)})["copy"]
