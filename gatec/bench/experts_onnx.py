"""A gated MLP as a mixture of experts in onnxruntime, beside its own dense graph: standard operators, and its own for mixtures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatec.bench.clock import medians
from gatec.bench.experts import MLP, SPLITS
from gatec.onnx import export
from gatec.pipeline import convert

WAYS = {"standard": "standard", "own operator": "ort"}  # of `gatec.export`, by the name in a row


def experts_onnx(width: int = 1024, hidden: int = 4096, tokens: int = 512, repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of (experts, top_k), for many tokens and for one: milliseconds of each file, and how much longer the dense one takes.

    Every file is the export of one layer, proven against PyTorch. Active share = top_k / experts.
    """
    dense, x = MLP(width, hidden).eval(), torch.randn(tokens, width)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = session(dense, Path(folder), "standard")
        for count, chosen in SPLITS:
            routed = convert(dense, "moe", experts=count, top_k=chosen, inputs=x).eval()
            files = {"dense": plain} | {name: session(routed, Path(folder), way) for name, way in WAYS.items()}
            for some, times in ((x, repeats), (x[:1], repeats * 10)):
                rows.append({"experts": count, "top_k": chosen, "tokens": len(some), **timed(files, some, times)})
    return rows


def session(model: nn.Module, folder: Path, way: str) -> Any:
    return opened(export(model, folder / "layer.onnx", inputs=torch.randn(2, in_features(model)), experts=way).path)


def opened(file: Path) -> Any:
    """A file in onnxruntime, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def in_features(model: nn.Module) -> int:
    return next(m.in_features for m in model.modules() if isinstance(m, nn.Linear))


def timed(files: dict[str, Any], x: Tensor, repeats: int) -> dict[str, float]:
    feeds = {files["dense"].get_inputs()[0].name: x.numpy()}
    seconds = medians({name: lambda s=s: s.run(None, feeds) for name, s in files.items()}, repeats)  # type: ignore[misc]
    return {name: round(s * 1e3, 3) for name, s in seconds.items()} | {
        f"dense / {name}": round(seconds["dense"] / s, 2) for name, s in seconds.items() if name != "dense"
    }
