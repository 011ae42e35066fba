"""The other ways to get a graph of a model, asked for the whole model and for the same bits."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import fx, nn

from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.entry import Inputs
from gatec.bench.coverage.same import same

PEERS = ("symbolic_trace", "export", "dynamo")


def ask(peer: str, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """status: whole, parts (with the number of graphs), wrong or refused (with the reason); and the seconds it took."""
    wanted = _ran(model, inputs)
    torch.compiler.reset()
    begun = time.process_time()
    try:
        run, graphs = _captured(peer, model, copied(inputs))
        seconds = time.process_time() - begun
        got = _ran(run, inputs)
    except Exception as error:  # a peer's refusal comes in any class
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
        return {"status": "refused", "seconds": round(time.process_time() - begun, 3), "reason": reason}
    status = "wrong" if not same(_plain(wanted), _plain(got)) else "whole" if graphs == 1 else "parts"
    return {"status": status, "seconds": round(seconds, 3), "graphs": graphs}


def _captured(peer: str, model: nn.Module, inputs: Inputs) -> tuple[Any, int]:
    args, kwargs = inputs
    if peer == "symbolic_trace":
        return fx.symbolic_trace(model), 1  # noqa: TID251 - it is what is compared
    if peer == "export":
        return torch.export.export(model, args, kwargs, strict=False).module(), 1
    counted = 0

    def backend(graph: fx.GraphModule, _: Any) -> Any:
        nonlocal counted
        counted += 1
        return graph.forward

    run = torch.compile(model, backend=backend)
    with torch.no_grad():
        run(*args, **kwargs)
    return run, counted


def _ran(run: Any, inputs: Inputs) -> Any:
    args, kwargs = copied(inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        return run(*args, **kwargs)


def _plain(output: Any) -> list[Any]:
    """Only the tensors: export gives a plain dict for a ModelOutput, and nobody holds that against it."""
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
