"""A small classifier of digits under a budget of multiply-adds: gates that are trained, beside torch-pruning's criteria.

dense 776 thousand multiply-adds -> 210 thousand, 88 thousand; accuracy before and after five epochs of fine-tuning
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from gatec import budget, channel_gates, close, compact, prune
from gatec.bench.pruning import criteria
from gatec.bench.pruning.training import Data, accuracy, digits, fitted, learned

BUDGETS = (210e3, 88e3)
WIDTHS, SIDES, POOLED = (24, 48, 64, 64), (8, 4, 4, 2), (True, False, True, False)
EPOCHS, TUNED = 30, 5
UNDER = 0.99  # of a budget, because gatec counts no biases

Row = dict[str, Any]


class Classifier(nn.Module):
    """Layers in a row."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def network(widths: Sequence[int] = WIDTHS) -> nn.Module:
    """Convolution, normalisation, ReLU, four times; 78 thousand parameters."""
    layers: list[nn.Module] = []
    for before, width, pooled in zip((1, *widths), widths, POOLED, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return Classifier(*layers, nn.Flatten(), nn.Linear(4 * widths[-1], 10))


def macs(widths: Sequence[Any]) -> Any:
    """Multiply-adds of the network with as many channels, its biases included; of tensors a tensor."""
    layers = zip((1, *widths), widths, SIDES, strict=False)
    return sum(side * side * width * (9 * before + 1) for before, width, side in layers) + 40 * widths[-1] + 10


def widths_of(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def rows(seeds: Iterable[int], peers: bool = True, epochs: int = EPOCHS) -> list[Row]:
    """Means over seeds by method and budget."""
    found: dict[tuple[str, float], list[Row]] = {}
    for seed in seeds:
        for row in _seeded(seed, peers, epochs):
            found.setdefault((row["method"], row["budget"]), []).append(row)
    return [_mean(method, allowed, several) for (method, allowed), several in found.items()]


def _seeded(seed: int, peers: bool, epochs: int) -> Iterator[Row]:
    data = digits(seed)
    torch.manual_seed(seed)
    dense = network()
    fitted(dense, data, epochs)
    yield _row("dense", 0.0, dense, accuracy(dense, data))
    for allowed in BUDGETS:
        gated, small = _ours(dense, data, allowed, epochs)
        yield {**_tuned("gatec, trained gates", allowed, small, dense, data), "gated": accuracy(gated, data)}
    if peers and criteria.there():
        for method, prepare in criteria.METHODS.items():
            prepared = prepare(copy.deepcopy(dense), data, epochs)
            for allowed in BUDGETS:
                small = criteria.pruned(prepared, data, functools.partial(_within, allowed))
                yield _tuned(f"torch-pruning, {method}", allowed, small, dense, data)


def _ours(dense: nn.Module, data: Data, allowed: float, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Gates and weights trained together while the budget tightens; then what is left of it."""
    gated = prune(dense, data.x[:2], form="hard")
    share = UNDER * allowed / macs(WIDTHS)
    learned(gated, list(channel_gates(gated).values()), functools.partial(budget, gated), share, data, epochs, dense)
    close(gated, to=share)
    return gated, compact(gated.eval(), data.x[:2])


def _within(allowed: float, model: nn.Module) -> bool:
    return bool(macs(widths_of(model)) <= allowed)


def _tuned(method: str, allowed: float, small: nn.Module, dense: nn.Module, data: Data) -> Row:
    before = accuracy(small, data)
    fitted(small, data, TUNED, rate=1e-3, teacher=dense)
    return {**_row(method, allowed, small, before), "after": accuracy(small, data)}


def _row(method: str, allowed: float, model: nn.Module, before: float) -> Row:
    return {"method": method, "budget": allowed, "kMACs": macs(widths_of(model)) / 1e3, "before": before}


def _mean(method: str, allowed: float, several: list[Row]) -> Row:
    numbers = {name: [row[name] for row in several] for name in several[0] if name not in ("method", "budget")}
    spread = {"after +-": round(stdev(numbers["after"]), 4)} if len(several) > 1 and "after" in numbers else {}
    means = {name: round(mean(values), 4) for name, values in numbers.items()}
    return {"part": "digits", "method": method, "budget kMACs": allowed / 1e3, **means, **spread, "seeds": len(several)}
