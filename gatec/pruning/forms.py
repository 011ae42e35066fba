"""Gates on the slots of a group: one trainable number per slot, 1 at birth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatec.errors import GatecError


class ChannelGate(nn.Module):
    """`forward()` gives the factor of each slot, `closed()` says which slots are gone for good: their factor is 0."""

    weight: nn.Parameter

    def __init__(self, size: int, group: str, **like: object) -> None:
        super().__init__()
        self.size, self.group = size, group
        self.weight = nn.Parameter(torch.full((size,), self.birth(), **like))  # type: ignore[call-overload]

    def birth(self) -> float:
        return 1.0

    def closed(self) -> Tensor:
        with torch.no_grad():
            return self.settled() == 0

    def settled(self) -> Tensor:
        """The factors in eval mode."""
        raise NotImplementedError

    def openness(self) -> Tensor:
        """How open each slot is, from 0 to 1 and differentiable: what a penalty or a budget counts."""
        raise NotImplementedError

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        """Close these slots, whatever was learned."""
        raise NotImplementedError


class Hard(ChannelGate):
    """b(w) = 1[w >= 1/2], with the gradient of the identity.

    Kim et al. 2019, "Plug-in, trainable gate for streamlining arbitrary neural networks", https://arxiv.org/abs/1904.10921
    """

    def settled(self) -> Tensor:
        return (self.weight >= 0.5).to(self.weight.dtype)

    def forward(self) -> Tensor:
        return self.settled() + (self.weight - self.weight.detach())

    openness = forward

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = 0.0


class HardConcrete(ChannelGate):
    """clamp(s (1.1 + 0.1) - 0.1, 0, 1) with s = sigmoid((log a + logit(u)) / beta), u uniform in training and 1/2 in eval mode.

    All readers of a slot see one u, which is drawn anew whenever log a has changed: once for each step of an optimizer.

    Louizos et al. 2018, "Learning sparse neural networks through L0 regularization", https://arxiv.org/abs/1712.01312
    """

    LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
    drawn: tuple[int, Tensor] | None = None

    def birth(self) -> float:
        return 3.0

    def settled(self) -> Tensor:
        return (torch.sigmoid(self.weight) * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def forward(self) -> Tensor:
        if not self.training:
            return self.settled()
        if self.drawn is None or self.drawn[0] != self.weight._version or self.drawn[1].shape != self.weight.shape:
            self.drawn = self.weight._version, torch.rand_like(self.weight).clamp(1e-6, 1 - 1e-6)
        u = self.drawn[1].to(self.weight)
        s = torch.sigmoid((self.weight + u.log() - (-u).log1p()) / self.BETA)
        return (s * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def openness(self) -> Tensor:
        """The chance of not being zero: sigmoid(log a - beta log(-low / high))."""
        shift = self.BETA * torch.log(torch.tensor(-self.LOW / self.HIGH))
        return torch.sigmoid(self.weight - shift)

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = -6.0


class Scale(ChannelGate):
    """A plain factor, to be driven towards zero by a penalty on its size; what is below `floor` counts as zero.

    Liu et al. 2017, "Learning efficient convolutional networks through network slimming", https://arxiv.org/abs/1708.06519
    """

    floor = 1e-2

    def settled(self) -> Tensor:
        return torch.where(self.weight.abs() < self.floor, torch.zeros_like(self.weight), self.weight)

    def forward(self) -> Tensor:
        return self.settled() + (self.weight - self.weight.detach()) * (self.weight.abs() < self.floor)

    def openness(self) -> Tensor:
        return self.weight.abs().clamp(max=1)

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = 0.0


FORMS: dict[str, type[ChannelGate]] = {"hard": Hard, "hard_concrete": HardConcrete, "scale": Scale}


def form(name: str) -> type[ChannelGate]:
    if name not in FORMS:
        raise GatecError("a form of channel gates", found=repr(name), hint=f"one of {', '.join(FORMS)}")
    return FORMS[name]


__all__ = ["FORMS", "ChannelGate", "form"]
