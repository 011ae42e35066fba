"""torch-pruning's ways to choose channels: the weights' norm, norms after sparse training, Taylor expansion, at random."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatec.bench.pruning.peer import version
from gatec.bench.pruning.training import Data, fitted, loss_of

RATIOS = [n / 100 for n in range(30, 96)]


@dataclass(frozen=True)
class Prepared:
    """A model that may have been trained for it, and what its channels are worth."""

    model: nn.Module
    worth: Any
    gradients: bool = False


def there() -> bool:
    return bool(version())


def pruned(prepared: Prepared, data: Data, fits: Callable[[nn.Module], bool]) -> nn.Module:
    """The model at the lowest ratio of channels at which it fits."""
    for ratio in RATIOS:
        model = copy.deepcopy(prepared.model)
        if prepared.gradients:
            loss_of(model, data.x, data.y, None).backward()
        _pruner("BasePruner", model, data, prepared.worth, ratio).step()
        model.zero_grad()
        if fits(model):
            return model
    raise ValueError(f"no ratio up to {RATIOS[-1]} fits the budget")


def _pruner(kind: str, model: nn.Module, data: Data, worth: Any, ratio: float = 0.5) -> Any:
    tp = importlib.import_module("torch_pruning")
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    model.eval()
    return getattr(tp.pruner, kind)(
        model, data.x[:2], importance=worth, pruning_ratio=ratio, ignored_layers=last, global_pruning=True
    )


def _worth(name: str, **options: Any) -> Any:
    return getattr(importlib.import_module("torch_pruning").importance, name)(**options)


def norm(model: nn.Module, data: Data, epochs: int) -> Prepared:
    return Prepared(model, _worth("MagnitudeImportance", p=2))


def sparse(model: nn.Module, data: Data, epochs: int) -> Prepared:
    """The norms of groups are made small while it is trained once more."""
    worth = _worth("GroupMagnitudeImportance", p=2)
    pruner = _pruner("GroupNormPruner", model, data, worth)
    pruner.update_regularizer()
    fitted(model, data, epochs, beside=lambda: pruner.regularize(model))
    return Prepared(model, worth)


def taylor(model: nn.Module, data: Data, epochs: int) -> Prepared:
    return Prepared(model, _worth("GroupTaylorImportance"), gradients=True)


def random(model: nn.Module, data: Data, epochs: int) -> Prepared:
    return Prepared(model, _worth("RandomImportance"))


METHODS: dict[str, Callable[[nn.Module, Data, int], Prepared]] = {
    "L2": norm, "GroupNorm": sparse, "Taylor": taylor, "random": random,
}  # fmt: skip
