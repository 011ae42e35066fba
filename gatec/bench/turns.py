"""Times and memory of several ways to do one thing, taken in turns so that a busy machine is as unfair to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gatec.bench.clock import medians

Run = Callable[..., Any]
WARM = 3  # rounds that are not counted


def in_turns(runs: Mapping[str, Run], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each; on a CUDA device by its own clock, with its cache flushed before every run."""
    if device != "cuda":
        return medians(runs, rounds)
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + WARM):
        for name, run in runs.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= WARM:
                taken[name].append(start.elapsed_time(end) / 1e3)
    return {name: median(times) for name, times in taken.items()}


def graphed(run: Run) -> Run:
    """The same as the replay of a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak(run: Run) -> int:
    """Bytes that a run takes at most beyond what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def saved(way: Run, operands: Sequence[Tensor], weights: Sequence[Tensor]) -> int:
    """Bytes that a forward keeps for the backward, weights and operands not counted; memory that is shared counts once."""
    leaves = [x.detach().requires_grad_() for x in operands]
    known = {_memory(x) for x in (*leaves, *weights)}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.layout == torch.strided and _memory(x) not in known:
            kept[_memory(x)] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = way(*leaves)
    del out
    return sum(kept.values())


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def short(error: BaseException) -> str:
    """Its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
