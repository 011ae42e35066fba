"""Handwritten digits, a loop that fits a classifier to them, and one that trains gates under a budget beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.pruning import ChannelGate, schedule

BATCH, HELD_OUT = 64, 500
RATE, GATE_RATE = 3e-3, 2e-3
STRENGTH = 2.0  # of the penalty, for costs as a share of what is allowed
TIGHT = 0.7  # of the steps, after which the whole budget holds
HEAT = 2.0  # of distillation


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    drawn: torch.Generator

    def batches(self, epochs: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(share of all steps that is done, images, labels)."""
        each = len(self.x) // BATCH
        for step in range(epochs * each):
            if step % each == 0:
                order = torch.randperm(len(self.x), generator=self.drawn)
            picks = order[step % each * BATCH :][:BATCH]
            yield step / (epochs * each), self.x[picks], self.y[picks]


def digits(seed: int) -> Data:
    """scikit-learn's 1797 images of 8 by 8, of which 500 are held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)
    drawn = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=drawn)
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    return Data(x[rest], y[rest], x[held], y[held], drawn)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    model.eval()
    return float((model(data.held_x).argmax(1) == data.held_y).float().mean())


def loss_of(model: nn.Module, x: Tensor, y: Tensor, teacher: nn.Module | None) -> Tensor:
    """Cross entropy, and the teacher's softened answers where there is one."""
    answers = model(x)
    loss = F.cross_entropy(answers, y)
    if teacher is None:
        return loss
    with torch.no_grad():
        wanted = F.softmax(teacher(x) / HEAT, 1)
    return loss + HEAT**2 * F.kl_div(F.log_softmax(answers / HEAT, 1), wanted, reduction="batchmean")


def fitted(model: nn.Module, data: Data, epochs: int, rate: float = RATE, teacher: nn.Module | None = None,
           beside: Callable[[], Any] = lambda: None) -> None:  # fmt: skip
    """Train in place; `beside` is called between backward and step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = epochs * (len(data.x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _, x, y in data.batches(epochs):
        optimizer.zero_grad()
        loss_of(model, x, y, teacher).backward()
        beside()
        optimizer.step()
        schedule.step()


def learned(model: nn.Module, gates: Sequence[ChannelGate], cost: Callable[[], Tensor], share: float,
            data: Data, epochs: int, teacher: nn.Module) -> None:  # fmt: skip
    """Train weights and gates of `model` together, while what its open slots may cost falls to `share`."""
    model.train()
    own = {id(gate.weight) for gate in gates}
    weights = [p for p in model.parameters() if id(p) not in own]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": RATE},
            {"params": [gate.weight for gate in gates], "lr": GATE_RATE, "weight_decay": 0.0},
        ]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    for done, x, y in data.batches(epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _warmth(done)
        allowed = schedule(done, share, end=TIGHT, power=1)
        away = (cost() / allowed - 1).abs()  # above it slots are closed, below it they are opened again
        optimizer.zero_grad()
        (loss_of(model, x, y, teacher) + STRENGTH * away).backward()
        optimizer.step()
        with torch.no_grad():
            for gate in gates:
                gate.weight.clamp_(0, 1)


def _warmth(done: float) -> float:
    """Up over the first tenth, down once the whole budget holds."""
    return min(1.0, done / 0.1, max(0.02, (1 - done) / (1 - TIGHT)))
