"""Gradient routing: one loss moves the gates, another one everything else, and neither gradient reaches the other's part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gatec.errors import GatecError
from gatec.pipeline import gate_parameters

Loss = Callable[[], Tensor]
Clip = float | Callable[[list[nn.Parameter]], Any] | None


class GradientRouting:
    """Two passes for each batch: `gate_optimizer` steps the gates, then `optimizer` steps all else, which sees the new gates.

        routing = gatec.GradientRouting(model, gate_optimizer, optimizer)
        for x, y in batches:
            routing.step(lambda: loss(model(x), y) + penalty(gates), lambda: loss(model(x), y))

    gates     what counts as a gate; `gatec.gate_parameters(model)` if not given
    every     step after so many calls, on the mean of their gradients
    clip      the largest norm of each of the two gradients for itself, or a function of the parameters
    scaler    a torch.amp.GradScaler; it is updated once for each step of both
    backward  what is called with (loss, inputs=parameters): Lightning's `self.manual_backward`, accelerate's
              `accelerator.backward`; Tensor.backward if not given

    Every batch is seen by two forwards: statistics of batch norms move twice, and dropout draws twice.
    """

    def __init__(self, model: nn.Module, gate_optimizer: Any, optimizer: Any, *, gates: Iterable[nn.Parameter] | None = None,
                 every: int = 1, clip: Clip = None, scaler: torch.amp.GradScaler | None = None,
                 backward: Callable[..., Any] | None = None) -> None:  # fmt: skip
        if isinstance(model, DistributedDataParallel):
            raise GatecError("a model whose gradients may be taken in part",
                             found="DistributedDataParallel, which waits for all of them",
                             hint="give it the module inside, and average the gradients in `clip`")  # fmt: skip
        if every < 1:
            raise GatecError("a number of calls for each step, 1 or more", found=str(every))
        known = list(gates) if gates is not None else gate_parameters(model)
        if not known:
            raise GatecError("a model with gates", found=f"none in {type(model).__name__}",
                             hint='gatec.convert(model, "wrap"), or gates=[...]')  # fmt: skip
        self.gates, self.others = held(gate_optimizer), held(optimizer)
        _apart(model, known, self.gates, self.others)
        self.gate_optimizer, self.optimizer = gate_optimizer, optimizer
        self.every, self.clip, self.scaler, self.backward = every, clip, scaler, backward or Tensor.backward
        self.calls = 0

    def step(self, loss_of_gates: Loss, loss: Loss) -> tuple[Tensor, Tensor]:
        """One batch. Both losses are functions, because the second forward is to see the gates after their step."""
        if self.calls % self.every == 0:
            for parameter in (*self.gates, *self.others):
                parameter.grad = None
        self.calls += 1
        first = self._pass(loss_of_gates, self.gates, self.gate_optimizer, "the gates")
        second = self._pass(loss, self.others, self.optimizer, "what is no gate")
        if self.scaler is not None and self._due:
            self.scaler.update()
        return first, second

    @property
    def _due(self) -> bool:
        return self.calls % self.every == 0

    def _pass(self, loss: Loss, parameters: list[nn.Parameter], optimizer: Any, whose: str) -> Tensor:
        value = loss()
        if not value.requires_grad:
            raise GatecError(f"a loss that depends on {whose}", found="one without a gradient",
                             hint="compute it from the model's output inside the function, with gradients enabled")  # fmt: skip
        part = value / self.every
        self.backward(part if self.scaler is None else self.scaler.scale(part), inputs=parameters)
        if self._due:
            self._stepped(parameters, optimizer)
        return value.detach()

    def _stepped(self, parameters: list[nn.Parameter], optimizer: Any) -> None:
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            if callable(self.clip):
                self.clip(parameters)
            else:
                nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)


def held(optimizer: Any) -> list[nn.Parameter]:
    """The parameters that an optimizer steps and that can learn."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _apart(model: nn.Module, known: list[nn.Parameter], gates: list[nn.Parameter], others: list[nn.Parameter]) -> None:
    """Refuse two optimizers that do not part the gates from the rest."""
    names = {id(p): name for name, p in model.named_parameters()}
    ids = {id(p) for p in known}
    for wanted, wrong in (
        ("an optimizer of gates alone", [p for p in gates if id(p) not in ids]),
        ("an optimizer without gates", [p for p in others if id(p) in ids]),
    ):
        if wrong:
            found = names.get(id(wrong[0]), "a parameter of another model")
            raise GatecError(wanted, found=f"{found} in it", where=type(model).__name__,
                             hint="gatec.gate_parameters(model) are the gates; the rest is for the other optimizer")  # fmt: skip
    if not gates:
        raise GatecError(
            "an optimizer of gates", found="one without parameters that can learn", where=type(model).__name__
        )
