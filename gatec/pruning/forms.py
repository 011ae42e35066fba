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

    def learned(self) -> Tensor:
        """What gates have learned of slots: the more, the longer a slot is kept."""
        return self.weight.detach()

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

    def learned(self) -> Tensor:
        return self.weight.detach().abs()

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = 0.0


class Annealed(ChannelGate):
    """A factor from near 0 to near 1 that `gatec.anneal` hardens; what is below `floor` counts as zero."""

    floor = 1e-2

    def factor(self) -> Tensor:
        raise NotImplementedError

    def anneal(self, progress: float, final: float) -> None:
        raise NotImplementedError

    def settled(self) -> Tensor:
        found = self.factor()
        return torch.where(found < self.floor, torch.zeros_like(found), found)

    def forward(self) -> Tensor:
        found = self.factor()
        return torch.where(found < self.floor, found - found.detach(), found)


class Polarised(Annealed):
    """g(w) = (1 + eps) w^2 / (w^2 + eps): the smaller eps, the more it is 0 or 1; 1 at birth, where w = 1, for every eps.

    What is closed is zero and stays so once `gatec.anneal` meets it, which lets eps shrink from 0.1 to nothing while a model is
    trained. The paper's form lacks the factor 1 + eps.

    Guo et al. 2021, "GDP: stabilized neural network pruning via gates with differentiable polarization",
    https://arxiv.org/abs/2109.02220
    """

    start = 0.1
    eps: Tensor

    def __init__(self, size: int, group: str, **like: object) -> None:
        super().__init__(size, group, **like)
        self.register_buffer("eps", torch.tensor(self.start, **like))  # type: ignore[arg-type]

    def factor(self) -> Tensor:
        square = self.weight.square()
        return (1 + self.eps) * square / (square + self.eps)

    def openness(self) -> Tensor:
        return self.factor() / (1 + self.eps)

    def learned(self) -> Tensor:
        return self.weight.detach().abs()

    def anneal(self, progress: float, final: float) -> None:
        """eps = 0.1 / final^progress; what is closed has no gradient from then on."""
        with torch.no_grad():
            self.weight[self.factor() < self.floor] = 0.0
        self.eps.fill_(max(self.start * final**-progress, torch.finfo(self.eps.dtype).tiny))

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = 0.0


def hardened(weight: Tensor, tau: Tensor) -> Tensor:
    """sigmoid(tau w); where tau is infinite the step 1[w > 0]."""
    hard = tau.isinf()
    soft = torch.sigmoid(torch.where(hard, torch.ones_like(tau), tau) * weight)
    return torch.where(hard, (weight > 0).to(weight.dtype), soft)


class Sigmoid(Annealed):
    """g(w) = sigmoid(tau w) / sigmoid(w0), which is 1 at birth, where w = w0 = 1/2 and tau = 1; 1 / sigmoid(w0) or 0 at tau = inf.

    Lyu et al. 2023, "Optimizing feature set for click-through rate prediction", https://arxiv.org/abs/2301.10909
    """

    start = 0.5
    tau: Tensor

    def __init__(self, size: int, group: str, **like: object) -> None:
        super().__init__(size, group, **like)
        self.register_buffer("tau", torch.ones((), **like))  # type: ignore[call-overload]

    def birth(self) -> float:
        return self.start

    def factor(self) -> Tensor:
        return self.openness() / torch.sigmoid(torch.full_like(self.tau, self.start))

    def openness(self) -> Tensor:
        return hardened(self.weight, self.tau)

    def anneal(self, progress: float, final: float) -> None:
        """tau = final^progress."""
        self.tau.fill_(final**progress)

    @torch.no_grad()
    def shut(self, which: Tensor) -> None:
        self.weight[which] = -10.0


FORMS: dict[str, type[ChannelGate]] = {
    "hard": Hard,
    "hard_concrete": HardConcrete,
    "scale": Scale,
    "polarised": Polarised,
    "sigmoid": Sigmoid,
}


def form(name: str) -> type[ChannelGate]:
    if name not in FORMS:
        raise GatecError("a form of channel gates", found=repr(name), hint=f"one of {', '.join(FORMS)}")
    return FORMS[name]


__all__ = ["FORMS", "Annealed", "ChannelGate", "form", "hardened"]
