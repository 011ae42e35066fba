"""Routers that give every token the same number of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.errors import GatecError
from gatec.moe.router import Router, bits, router, scorer, summed


@router("softmax")
class Softmax(Router):
    """The largest of softmax(scores). Shazeer et al. 2017, https://arxiv.org/abs/1701.06538"""

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weight, chosen = torch.topk(torch.softmax(logits, -1), self.top_k, -1)
        return chosen, self.counted(weight)


@router("topk_softmax")
class TopkSoftmax(Router):
    """softmax over the largest scores alone. Jiang et al. 2024, Mixtral, https://arxiv.org/abs/2401.04088"""

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, chosen = torch.topk(logits, self.top_k, -1)
        return chosen, self.counted(torch.softmax(best, -1))


@router("sigmoid")
class Sigmoid(Router):
    """The largest of sigmoid(scores) + bias, where the bias only chooses. In training it rises by `rate` for an expert
    below the mean load, and falls above: no loss is needed. DeepSeek-V3, https://arxiv.org/abs/2412.19437
    """

    bias: Tensor
    rate = 1e-3

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        self.register_buffer("bias", torch.zeros(self.experts, dtype=torch.float32, device=like.get("device")))

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.sigmoid(logits)
        chosen = torch.topk(scores + self.bias.to(scores.dtype), self.top_k, -1).indices
        return chosen, self.counted(scores.gather(-1, chosen))

    def probabilities(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(logits.float())
        return scores / scores.sum(-1, keepdim=True)

    @torch.no_grad()
    def count(self, weight: Tensor) -> None:
        super().count(weight)
        if self.training:
            load = summed((weight != 0).sum(0).float())
            self.bias += self.rate * torch.sign(load.mean() - load)


@router("capped")
class Capped(Softmax):
    """The largest of softmax(scores) among experts that are open: in training one is closed while its running share is
    above (1 + threshold) times the mean, and chosen only where fewer than `top_k` are open.
    Pavlitska et al. 2022, "hard constraint", https://arxiv.org/abs/2204.10598
    """

    importance: Tensor
    threshold = 0.5
    decay = 0.9  # of the running share, for each batch

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        even = torch.full((self.experts,), 1 / self.experts, dtype=torch.float32, device=like.get("device"))
        self.register_buffer("importance", even)

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().route(logits)
        closed = self.importance > (1 + self.threshold) * self.importance.mean()
        share = torch.softmax(logits, -1)
        chosen = torch.topk(torch.where(closed, share - 1, share), self.top_k, -1).indices
        return chosen, self.counted(share.gather(-1, chosen))

    @torch.no_grad()
    def count(self, weight: Tensor) -> None:
        super().count(weight)
        if self.training:
            load = summed(weight.sum(0).to(self.importance.dtype))
            self.importance.lerp_(load / load.sum().clamp_min(1), 1 - self.decay)


@router("noisy")
class Noisy(Softmax):
    """softmax with noise on the scores in training, its width learned. Shazeer et al. 2017"""

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        self.noise = scorer(width, self.experts, 0, like)

    def scores(self, x: Tensor) -> Tensor:
        clean = super().scores(x)
        return clean + torch.randn_like(clean) * F.softplus(self.noise(x)) if self.training else clean


@router("hash")
class Hash(Router):
    """The signs of fixed random projections of a token are the number of its expert; the next ones follow by number.

    Locality-sensitive: tokens that point the same way share experts. Nothing is trained. After Roller et al. 2021,
    "Hash Layers", https://arxiv.org/abs/2106.04426, which hashes the token's number in the vocabulary.
    """

    follows_centres = False
    planes: Tensor

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        drawn = torch.randn(width, bits(self.experts), generator=torch.Generator().manual_seed(0))
        self.register_buffer("planes", drawn.to(**like))

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.planes

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        powers = (logits.new_ones(logits.shape[-1]).cumsum(0) - 1).exp2()
        code = ((logits > 0) * powers).sum(-1, keepdim=True).long()
        steps = code.new_ones(self.top_k).cumsum(0) - 1
        chosen = (code + steps) % self.experts
        return chosen, logits.new_full((1, 1), 1.0 if self.whole else 1 / self.top_k).expand(chosen.shape)

    def penalties(self, logits: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {}


@router("multi_gate")
class MultiGate(Softmax):
    """A router of its own for each task; `with gatec.task(model, 1):` takes the second. Ma et al. 2018, MMoE"""

    task = 0

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        self.score = nn.ModuleList(scorer(width, self.experts, hidden, like, i) for i in range(self.tasks))

    def scores(self, x: Tensor) -> Tensor:
        if not 0 <= self.task < self.tasks:
            raise GatecError(f"a task from 0 to {self.tasks - 1}", found=str(self.task), where="multi_gate router")
        assert isinstance(self.score, nn.ModuleList)
        found: Tensor = self.score[self.task](x)
        return found
