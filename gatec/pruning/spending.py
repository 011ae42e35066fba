"""What a model and its layers cost when it runs: counted, and measured on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gatec.axes import walked
from gatec.capture import evaluating, untouched
from gatec.clocks import Timer, clock, peak, seconds
from gatec.report import Narrowed

RUNS = 2  # forwards in which layers are timed


def spent(model: nn.Module, of: str, args: Any, kwargs: Any, timer: Timer = seconds) -> float:
    """Parameters, multiplications, memory (bytes) or latency (seconds) of one forward in eval mode."""
    if of == "parameters":
        return float(sum(p.numel() for p in model.parameters()))
    if of == "multiplications":
        return float(sum(walked(model, args, kwargs).macs.values()))
    with torch.no_grad(), evaluating(model), untouched(model):
        if of == "latency":
            return timer(model, *args, **kwargs)
        return float(_bytes(*model.parameters(), *model.buffers()) + peak(model, *args, **kwargs))


@dataclass(frozen=True)
class Spent:
    """By layer, and of the whole model at ""."""

    parameters: Mapping[str, int]
    seconds: Mapping[str, float]
    memory: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, args: Any, kwargs: Any) -> Spent:
        layers = {path: m for path, m in model.named_modules() if path and _layer(m)}
        found, made = _by_layer(model, layers, args, kwargs)
        parameters = {path: sum(p.numel() for p in m.parameters()) for path, m in {**layers, "": model}.items()}
        memory = {path: _bytes(*m.parameters()) + made[path] for path, m in layers.items()}
        found[""] = spent(model, "latency", args, kwargs)
        return cls(parameters, found, {**memory, "": int(spent(model, "memory", args, kwargs))})

    def beside(self, after: Spent, before_macs: Mapping[str, float], macs: Mapping[str, float]) -> tuple[Narrowed, ...]:
        """This and what is left of it, the whole model first; multiplications are by parameter."""
        were, are = _summed(before_macs), _summed(macs)
        return tuple(
            Narrowed(path, (self.parameters[path], after.parameters[path]), (round(were[path]), round(are[path])),
                     (self.seconds[path], after.seconds[path]), (self.memory[path], after.memory[path]))
            for path in ("", *(p for p in self.parameters if p and p in after.parameters))
        )  # fmt: skip


def _summed(macs: Mapping[str, float]) -> dict[str, float]:
    found = defaultdict[str, float](float)
    for name, value in macs.items():
        found[""] += value
        if "." in name:
            found[name.rpartition(".")[0]] += value
    return found


def _layer(module: nn.Module) -> bool:
    """Whether a module has parameters and no other module below it has."""
    own = any(p is not None for p in module._parameters.values())
    return own and not any(next(child.parameters(), None) is not None for child in module.children())


def _by_layer(
    model: nn.Module, layers: Mapping[str, nn.Module], args: Any, kwargs: Any
) -> tuple[dict[str, float], dict[str, int]]:
    """The seconds of each layer in the fastest of several forwards, and the bytes of what it returns."""
    best, made = dict.fromkeys(layers, float("inf")), dict.fromkeys(layers, 0)
    starts, taken = dict[str, float](), dict[str, float]()

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: starts.update({path: clock()})

    def leave(path: str) -> Callable[..., None]:
        def leaving(module: nn.Module, given: Any, out: Any) -> None:
            taken[path] = taken.get(path, 0.0) + clock() - starts[path]
            made[path] = _bytes(*(t for t in tree_leaves(out) if isinstance(t, Tensor)))

        return leaving

    hooks = [
        h
        for path, m in layers.items()
        for h in (m.register_forward_pre_hook(enter(path)), m.register_forward_hook(leave(path)))
    ]
    try:
        with torch.no_grad(), evaluating(model), untouched(model):
            for _ in range(RUNS):
                taken.clear()
                model(*args, **kwargs)
                best = {path: min(best[path], taken.get(path, 0.0)) for path in layers}
    finally:
        for hook in hooks:
            hook.remove()
    return best, made


def _bytes(*values: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in values)
