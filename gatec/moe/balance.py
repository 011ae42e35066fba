"""losses(): what routers ask of a training loop; task(): whose router a shared layer takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.moe.fixed import MultiGate
from gatec.moe.router import Losses


def losses(model: nn.Module, **weights: float) -> dict[str, Tensor] | Tensor:
    """The losses of the last forward in training: by name, each the mean over the modules that have it.

    With weights their weighted sum: `loss + gatec.losses(model, balance=0.01, z=1e-3)`. Activation checkpointing has to
    be the non-reentrant one: the other runs forwards without gradients.
    """
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        given = vars(module).get("losses")
        for name, value in given.items() if isinstance(given, Losses) else ():
            found.setdefault(name, []).append(value)
    mean = {name: torch.stack([v.to(values[0].device) for v in values]).mean() for name, values in found.items()}
    if not weights:
        return mean
    missing = sorted(set(weights) - set(mean))
    if missing:
        raise GatecError(f"losses that {type(model).__name__} has", found=", ".join(missing),
                         hint=f"run a forward in training first; it has {', '.join(mean) or 'none'}")  # fmt: skip
    return torch.stack([weight * mean[name] for name, weight in weights.items()]).sum()


@contextmanager
def task(model: nn.Module, number: int) -> Iterator[None]:
    """Inside, layers with a router for each task take that of task `number`, counted from 0."""
    routers = [m for m in model.modules() if isinstance(m, MultiGate)]
    if not routers:
        raise GatecError("a model with multi_gate routers", found=f"none in {type(model).__name__}",
                         hint='gatec.convert(model, "moe", router="multi_gate", tasks=2)')  # fmt: skip
    if not all(0 <= number < r.tasks for r in routers):
        raise GatecError(f"a task from 0 to {min(r.tasks for r in routers) - 1}", found=str(number))
    before = [r.task for r in routers]
    try:
        for r in routers:
            r.task = number
        yield
    finally:
        for r, old in zip(routers, before, strict=True):
            r.task = old
