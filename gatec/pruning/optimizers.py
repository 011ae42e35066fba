"""An optimizer that goes on with a model of which slots were removed."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gatec.errors import GatecError
from gatec.history import history
from gatec.pruning.gating import GATES
from gatec.pruning.plan import Plan


def remapped(optimizer: Optimizer, gated: nn.Module, small: nn.Module) -> Optimizer:
    """The optimizer of `gated` for `small = gatec.compact(gated)`: its groups, options and state, without what is gone.

    State of a parameter's own shape (momentum, second moments) is cut as the parameter was; the gates leave. Raises
    GatecError for parameters that are not those of `gated`. The optimizer that is given is not touched.
    """
    names, found, plan = {id(p): n for n, p in gated.named_parameters()}, dict(small.named_parameters()), _plan(small)
    groups, state = [], defaultdict[Tensor, Any](dict)
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            name = _named(old, names, gated)
            if name.startswith(f"{GATES}."):
                continue
            if name not in found:
                raise GatecError(f"the parameters of {type(gated).__name__} in the compacted model", found=f"no {name}",
                                 hint="small = gatec.compact(gated)")  # fmt: skip
            new, dims = found[name], plan.kept.get(name, {})
            kept.append(new)
            if old in optimizer.state:
                state[new] = {key: _cut(value, old, dims, new) for key, value in optimizer.state[old].items()}
        if kept:
            groups.append({**group, "params": kept})
    made = copy.copy(optimizer)
    made.param_groups, made.state = groups, state
    return made


def _named(parameter: Tensor, names: dict[int, str], gated: nn.Module) -> str:
    if id(parameter) not in names:
        raise GatecError(f"an optimizer of the parameters of this {type(gated).__name__}",
                         found=f"one of shape {tuple(parameter.shape)} that is none of them",
                         hint="gatec.remapped(optimizer, gated, small)")  # fmt: skip
    return names[id(parameter)]


def _plan(small: nn.Module) -> Plan:
    """What the last compaction removed."""
    steps = [s["removed"] for s in history(small) if "removed" in s]
    return Plan.of(steps[-1]) if steps else Plan()


def _cut(value: Any, old: Tensor, dims: dict[int, list[int]], new: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return copy.deepcopy(value)
    for dim, at in dims.items():
        value = value.index_select(dim, torch.tensor(at, device=value.device))
    if value.shape != new.shape:
        raise GatecError("state that was cut as its parameter", found=f"{tuple(value.shape)} for {tuple(new.shape)}",
                         hint="compact the model that this optimizer trained")  # fmt: skip
    return value.clone()
