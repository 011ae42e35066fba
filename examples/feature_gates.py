"""Which inputs matter? Gates on 64 pixels of a digit and 192 columns of noise, trained on 300 samples.

A gate of its own for each input feature, 2 sigmoid(g) with g = 0 at first, and four ways to train:

no gates    the same network; its ranking is the norm of each feature's column of weights
L1          the same network with an L1 penalty on the first layer's weights; ranked likewise
leaky       gates; both losses are taken in two passes, but the gradients of the first pass stay for the second
routed      gates; gatec.GradientRouting: the first loss moves the gates alone, the second one everything else

AUC: how surely a pixel that is not nearly always blank ranks above a column of noise; accuracy on 1497 other digits.
Mean and deviation of five seeds, 300 steps of AdamW:

    no gates  AUC 0.858 +- 0.046   accuracy 0.673 +- 0.017
    L1        AUC 0.939 +- 0.013   accuracy 0.897 +- 0.008
    leaky     AUC 0.950 +- 0.017   accuracy 0.930 +- 0.009
    routed    AUC 0.950 +- 0.017   accuracy 0.930 +- 0.009

The two schedules do not differ here: the leaked gradient is about the one that follows it, and Adam does not see its length.
It would matter where the two losses, or the data that they are taken on, differ, or where gradients are clipped.

python examples/feature_gates.py [seeds]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import gatec

NOISE, SAMPLES, STEPS = 192, 300, 300


def entering(x: Tensor, layer: gatec.Linear) -> Tensor:
    return layer(gatec.here(x))


def after(site, here, layer):
    return (
        here
        * 2
        * torch.sigmoid(site.add("input_gate", lambda: nn.Parameter(torch.zeros(layer.in_features)), near=layer))
    )


ENTRY = gatec.Gate(before=(entering,), after=after)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training and test sets, and what each column is: a pixel (1), noise (0), or a pixel that is nearly always blank (-1)."""
    data = load_digits()
    pixels = torch.tensor(data.data / 16, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(pixels), NOISE, generator=draw)
    order = torch.randperm(len(pixels), generator=draw)
    x, y = torch.cat([pixels, noise], 1)[order], torch.tensor(data.target)[order]
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    kinds = torch.cat([torch.where(pixels.std(0) > 0.05, 1, -1), torch.zeros(NOISE, dtype=torch.long)])
    return x[:SAMPLES], y[:SAMPLES], x[SAMPLES:], y[SAMPLES:], kinds


def network(seed: int, gated: bool) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64 + NOISE, 64), nn.ReLU(), nn.Linear(64, 10))
    return gatec.convert(model, ENTRY, inputs=torch.zeros(2, 64 + NOISE), only="^0$") if gated else model


def parts(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    gates = gatec.gate_parameters(model)
    return gates, [p for p in model.parameters() if not any(p is g for g in gates)]


def plain(model: nn.Sequential, x: Tensor, y: Tensor, weight: float = 0.0) -> Tensor:
    """Train without gates; the ranking."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + weight * model[0].weight.abs().sum()).backward()
        optimizer.step()
    return model[0].weight.detach().norm(dim=0)


def leaky(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    gates, others = parts(model)
    one, two = torch.optim.Adam(gates, 0.03), torch.optim.AdamW(others, 1e-3)
    for _ in range(STEPS):
        one.zero_grad()
        two.zero_grad()
        gate_loss(model, x, y).backward()
        one.step()
        F.cross_entropy(model(x), y).backward()
        two.step()
    return gates[0].detach()


def routed(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    gates, others = parts(model)
    routing = gatec.GradientRouting(model, torch.optim.Adam(gates, 0.03), torch.optim.AdamW(others, 1e-3))
    for _ in range(STEPS):
        routing.step(lambda: gate_loss(model, x, y), lambda: F.cross_entropy(model(x), y))
    return gates[0].detach()


def gate_loss(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """The gates answer for the task, and for how wide they are open."""
    return F.cross_entropy(model(x), y) + 3e-3 * torch.sigmoid(gatec.gate_parameters(model)[0]).sum()


Way = Callable[[nn.Sequential, Tensor, Tensor], Tensor]
WAYS: dict[str, tuple[bool, Way]] = {
    "no gates": (False, plain),
    "L1": (False, lambda model, x, y: plain(model, x, y, 1e-3)),
    "leaky": (True, leaky),
    "routed": (True, routed),
}


def run(seed: int, gated: bool, way: Way) -> tuple[float, float]:
    """(AUC of the ranking, test accuracy)"""
    x, y, test, labels, kinds = digits(seed)
    model = network(seed, gated)
    ranking = way(model, x, y)
    with torch.no_grad():
        right = (model(test).argmax(1) == labels).double().mean()
    return float(roc_auc_score(kinds[kinds >= 0], ranking[kinds >= 0])), float(right)


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name, (gated, way) in WAYS.items():
        found = [run(seed, gated, way) for seed in range(seeds)]
        (auc, spread), (accuracy, other) = ((statistics.mean(v), statistics.stdev(v)) for v in zip(*found, strict=True))
        sys.stdout.write(f"{name:<9} AUC {auc:.3f} +- {spread:.3f}   accuracy {accuracy:.3f} +- {other:.3f}\n")
