"""What removing half of the channels is worth in time, beside what it is worth in multiply-adds."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatec import compact, export, groups, prune
from gatec.bench.clock import medians
from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.entry import Built, Inputs
from gatec.bench.experts_onnx import opened
from gatec.bench.pruning import peer
from gatec.bench.pruning.heads import repaired
from gatec.bench.pruning.ours import halved
from gatec.zoo import load

BATCH, SIDE, LENGTH = 8, 128, 128
LLAMA = "num_hidden_layers=4,hidden_size=512,intermediate_size=1376,num_attention_heads=8,head_dim=64"

Row = dict[str, Any]


def _resnet(name: str) -> Built:
    return load(f"timm:{name}"), ((torch.randn(BATCH, 3, SIDE, SIDE),), {})


def _llama(shared: int) -> Built:
    ids = torch.randint(0, 512, (BATCH, LENGTH))
    return load(f"transformers:llama?{LLAMA},num_key_value_heads={shared}"), (
        (),
        {"input_ids": ids, "use_cache": False},
    )


# Whether the peer is asked: it finds no end with grouped queries.
SUBJECTS: dict[str, tuple[Callable[[], Built], bool]] = {
    "resnet18": (lambda: _resnet("resnet18"), True),
    "resnet50": (lambda: _resnet("resnet50"), True),
    "llama": (lambda: _llama(8), True),
    "llama, grouped queries": (lambda: _llama(2), False),
}


def rows(peers: bool = True, repeats: int = 9) -> list[Row]:
    """A row for each model and tool, and one in onnxruntime: milliseconds before and after, speed-up, ratio of multiply-adds."""
    found = []
    for name, (make, asked) in SUBJECTS.items():
        model, inputs = make()
        ways = {"gatec": _ours(model, inputs)}
        if peers and asked and peer.version():
            ways[peer.PEER] = _theirs(model, inputs)
        found += measured(name, model, ways, inputs, repeats)
        found.append(exported(name, model, ways["gatec"], inputs, repeats))
    return found


def exported(name: str, model: nn.Module, small: nn.Module, inputs: Inputs, repeats: int) -> Row:
    """Both as ONNX files in onnxruntime, in turns; each is proven against PyTorch when it is written."""
    args, kwargs = inputs
    given = {n: t for n, t in kwargs.items() if isinstance(t, Tensor)} or args
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for who, one in (("dense", model), ("gatec", small)):
            runs[who] = opened(export(one, Path(folder) / f"{who}.onnx", given).path)
        names = [i.name for i in runs["dense"].get_inputs()]
        feeds = dict(
            zip(names, (t.numpy() for t in (given.values() if isinstance(given, dict) else given)), strict=True)
        )
        taken = medians({who: functools.partial(run.run, None, feeds) for who, run in runs.items()}, repeats)
    ratio = _flops(model, inputs) / _flops(small, inputs)
    return _row(name, "gatec, onnxruntime", taken["dense"], taken["gatec"], ratio)


def measured(name: str, model: nn.Module, ways: dict[str, nn.Module], inputs: Inputs, repeats: int) -> list[Row]:
    """The dense model and the small ones in turns."""
    args, kwargs = inputs
    several = {"dense": model, **ways}
    with torch.inference_mode():
        taken = medians({who: functools.partial(m, *args, **kwargs) for who, m in several.items()}, repeats)
        work = {who: _flops(m, inputs) for who, m in several.items()}
    return [_row(name, who, taken["dense"], taken[who], work["dense"] / work[who]) for who in ways]


def _row(name: str, who: str, before: float, after: float, ratio: float) -> Row:
    speedup = before / after
    return {"part": "speed", "model": name, "batch": BATCH, "tool": who, "before ms": round(before * 1e3, 1),
            "after ms": round(after * 1e3, 1), "speed-up": round(speedup, 2), "FLOP ratio": round(ratio, 2),
            "of the ratio": round(speedup / ratio, 2)}  # fmt: skip


def _flops(model: nn.Module, inputs: Inputs) -> int:
    with FlopCounterMode(display=False) as counted:
        model(*inputs[0], **inputs[1])
    return int(counted.get_total_flops())


def _ours(model: nn.Module, inputs: Inputs) -> nn.Module:
    kinds = {group.kind for group in groups(model, inputs) if not group.refused} - {"head dims"}
    gated = prune(model, inputs, form="hard", kinds=sorted(kinds))  # heads go whole, as the peer's do
    halved(gated)
    small: nn.Module = compact(gated, inputs)
    return small.eval()


def _theirs(model: nn.Module, inputs: Inputs) -> nn.Module:
    model = copied(model)
    pruner = peer.built(model, inputs)
    pruner.step()
    repaired(model, pruner.num_heads)
    return model.eval()
