"""Seconds and memory of capturing Llamas of growing depth, beside torch.export and Dynamo in the same run."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gatec.bench.clock import medians
from gatec.program import Program
from gatec.zoo import load

DEPTHS = (16, 64)
WIDTH = "hidden_size=256,intermediate_size=688"  # tiny weights would make the graphs look large


def depths(layers: tuple[int, ...] = DEPTHS, repeats: int = 1) -> list[dict[str, Any]]:
    """A row per depth: seconds of each way to capture the whole model, their ratios, and gatec's memory."""
    return [_row(n, repeats) for n in layers]


def _row(layers: int, repeats: int) -> dict[str, Any]:
    model = load(f"transformers:llama?num_hidden_layers={layers},{WIDTH}")
    batch = {"input_ids": torch.arange(16).reshape(2, 8), "use_cache": False}
    ways: dict[str, Callable[[], Any]] = {
        "gatec": partial(capture, model, batch),
        "torch.export": partial(torch.export.export, model, (), batch, strict=False),
        "dynamo": partial(_dynamo, model, batch),
    }
    seconds = medians(ways, repeats)
    ratios = {f"{peer} / gatec": round(seconds[peer] / seconds["gatec"], 1) for peer in ("torch.export", "dynamo")}
    return {"layers": layers, **{k: round(v, 2) for k, v in seconds.items()}, **ratios, **memory(model, batch)}


def capture(model: nn.Module, batch: dict[str, Any]) -> Program:
    """Everything of the model that can be captured, looked at once."""
    program = Program.of(model, (), batch)
    for path in program.calls:
        program.graph_of(path)
    return program


def _dynamo(model: nn.Module, batch: dict[str, Any]) -> None:
    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=lambda graph, _: graph.forward)(**batch)


def memory(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """What a captured program keeps beyond the model: Python objects as traced, tensors by their storages."""
    held = _storages([*model.parameters(), *model.buffers()])
    tracemalloc.start()
    program = capture(model, batch)
    objects, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    calls = [
        t
        for found in program.calls.values()
        for call in found
        for t in tree_leaves((call.args, call.kwargs, call.output))
    ]
    activations = sum({**_storages(calls), **held}.values()) - sum(held.values())
    base = sum(held.values()) + activations
    return {"model MB": round(sum(held.values()) / 1e6, 2), "activations MB": round(activations / 1e6, 2),
            "graphs MB": round(objects / 1e6, 2), "peak MB": round(peak / 1e6, 2),
            "(all) / (model + activations)": round((base + peak) / base, 2)}  # fmt: skip


def _storages(values: list[Any]) -> dict[int, int]:
    tensors = [v for v in values if isinstance(v, Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
