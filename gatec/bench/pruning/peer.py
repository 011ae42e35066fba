"""torch-pruning on one model as its examples use it: half of the channels, half of the heads, the smallest norms first."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gatec.axes import told
from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.entry import Inputs
from gatec.bench.coverage.work import words
from gatec.bench.pruning.exact import drift, outputs, shaken
from gatec.bench.pruning.heads import counted, repaired

PEER = "torch-pruning"
CHANNELS = {
    nn.Linear: 0,
    nn.Embedding: 1,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
}  # of a weight; others: the first

Rows = dict[nn.Module, list[int]]


def version() -> str:
    """Empty where it is not installed."""
    return metadata.version(PEER) if find_spec("torch_pruning") else ""


def ask(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """status: ran, with how far the result is from the same model with the removed channels at zero; or how it failed."""
    before = shaken(model)
    kept = copied(before)
    try:
        begun = time.process_time()
        pruner = built(before, inputs)
        build = time.process_time() - begun
        rows = _pruned(pruner, before)
    except Exception as error:  # it raises whatever its own code trips over
        return {"status": "raised", "reason": words(error)}
    row = {"seconds": round(build, 3), "step s": round(time.process_time() - begun - build, 3)}
    sizes = [sum(p.numel() for p in m.parameters()) for m in (before, kept)]
    if sizes[0] == sizes[1]:
        return {**row, "status": "nothing pruned"}
    row["parameters left"] = round(sizes[0] / sizes[1], 3)
    repaired(before, pruner.num_heads)
    try:
        got = outputs(before.double(), inputs)
    except Exception as error:
        return {**row, "status": "fails after", "reason": words(error)}
    wanted = outputs(_closed(kept, before, rows).double(), inputs)
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return {**row, "status": "other shape"}
    return {**row, "status": "ran", "drift": drift(wanted, got)}


def built(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """A pruner of half of everything but what writes the result."""
    tp = importlib.import_module("torch_pruning")
    args, kwargs = copied(inputs)
    usual = {"importance": tp.importance.MagnitudeImportance(p=2), "pruning_ratio": 0.5, "ignored_layers": heads(model, inputs),
             "num_heads": counted(model), "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5,
             "output_transform": _summed}  # fmt: skip
    return tp.pruner.BasePruner(model, kwargs or args, **{**usual, **options})


def _pruned(pruner: Any, model: nn.Module) -> Rows:
    """Prune, and note which output channels of each layer went, as numbered in the whole model."""
    left: Rows = {}
    own = set(model.modules())
    for group in pruner.step(interactive=True):
        for dep, indices in group:
            module = dep.target.module
            if module in own and pruner.DG.is_out_channel_pruning_fn(dep.handler):
                rows = left.setdefault(module, list(range(pruner.DG.get_out_channels(module) or 0)))
                gone = {int(i) for i in indices}
                left[module] = [row for at, row in enumerate(rows) if at not in gone]
        group.prune()
    return left


@torch.no_grad()
def _closed(whole: nn.Module, pruned: nn.Module, left: Rows) -> nn.Module:
    """The whole model with the channels at zero that `pruned` is without."""
    names = {module: name for name, module in pruned.named_modules()}
    for module, rows in left.items():
        layer = whole.get_submodule(names[module])
        for values in layer.parameters(recurse=False):
            dim = CHANNELS.get(type(layer), 0) if values.ndim > 1 else 0
            gone = torch.ones(values.shape[dim], dtype=torch.bool)
            gone[rows] = False
            values.index_fill_(dim, gone.nonzero().flatten(), 0)
    return whole


@torch.no_grad()
def heads(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers that write the result, whose channels are not to be pruned."""
    written: dict[int, tuple[nn.Module, Tensor]] = {}
    hooks = [
        m.register_forward_hook(lambda m, _, out: written.update({_memory(out): (m, out)})) for m in _layers(model)
    ]
    args, kwargs = copied(inputs)
    results = [t for t in tree_leaves(told(model(*args, **kwargs))) if isinstance(t, Tensor)]
    for hook in hooks:
        hook.remove()
    found = [written[_memory(t)][0] for t in results if _memory(t) in written]
    widths = {w for t in results if _memory(t) not in written for w in (t.shape[-1], t.shape[min(1, t.ndim - 1)])}
    return [*found, *(m for m in _layers(model) if m not in found and len(m.get_parameter("weight")) in widths)]


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)))


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _summed(output: Any) -> Tensor:
    total: Tensor = sum(t.sum() for t in tree_leaves(told(output)) if isinstance(t, Tensor) and t.requires_grad)  # type: ignore[assignment]
    return total
