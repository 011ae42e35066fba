"""Routers under which tokens differ in how many experts they have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.moe.router import Router, bits, gumbel, router, scorer


@router("expert_choice")
class ExpertChoice(Router):
    """Every expert takes as many tokens, those that want it most: even by construction, but a token's experts depend on
    the tokens behind it. Zhou et al. 2022, https://arxiv.org/abs/2202.09368
    """

    fixed = False
    kept = "experts choose among all tokens of a call, later ones too"

    def route(self, logits: Tensor) -> Tensor:
        scores = torch.softmax(logits, -1)
        room = (len(logits) * self.top_k + self.experts - 1) // self.experts  # in ONNX, division rounds towards zero
        taken = torch.topk(scores, room, 0).indices
        return self.counted(scores, torch.zeros_like(scores).scatter(0, taken, 1.0))


@router("dynamic")
class Dynamic(Router):
    """Experts whose predicted output is at least (1 - tau) of the largest one's. `gatec.calibrate` fits scores and tau.

    tau = 1 runs all of them. Szatkowski et al. 2024, D2DMoE, https://arxiv.org/abs/2310.04361
    """

    fixed = False
    tau: Tensor

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        start = torch.tensor(self.top_k / self.experts, dtype=torch.float32, device=like.get("device"))
        self.register_buffer("tau", start)

    def predicted(self, logits: Tensor) -> Tensor:
        """Each expert's share in the output: a length, so never negative."""
        return F.softplus(logits)

    def route(self, logits: Tensor) -> Tensor:
        length = self.predicted(logits)
        least = (1 - self.tau.to(length.dtype)) * length.amax(-1, keepdim=True)
        return self.counted(length, (length >= least).to(length.dtype))


@router("dselect")
class DSelect(Router):
    """`top_k` selectors, each a smooth binary code of one expert; their mixture sums to 1 and is sparse once codes are
    saturated. Codes that no expert has stand for the first ones again, so that nothing is ever lost.
    For parts of one layer weights are multiplied by the number of experts. Hazimeh et al. 2021, https://arxiv.org/abs/2106.03760
    """

    fixed = follows_centres = False
    gamma = 1.0
    kept = "weights are not all one"

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        self.bits = bits(self.experts)
        self.score = scorer(width, self.top_k * (self.bits + 1), hidden, like)

    def route(self, logits: Tensor) -> Tensor:
        mixed = self.mixed(logits)
        return mixed * self.experts if self.whole else mixed

    def mixed(self, logits: Tensor) -> Tensor:
        share, code = logits.split([self.top_k, self.top_k * self.bits], -1)
        one = smooth_step(code.unflatten(-1, (self.top_k, self.bits)), self.gamma)
        found = one.new_ones(*one.shape[:-1], 1)
        for place in one.unbind(-1):
            found = torch.cat([found * (1 - place).unsqueeze(-1), found * place.unsqueeze(-1)], -1)
        mixed: Tensor = (torch.softmax(share, -1).unsqueeze(-1) * found).sum(-2)
        own, spare = mixed[..., : self.experts], mixed[..., self.experts :]
        return own + F.pad(spare, (0, 2 * self.experts - mixed.shape[-1]))

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.mixed(logits.float())

    def penalties(self, logits: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """entropy  of the mixture, whose fall makes the codes saturate; the balance of all routers"""
        mixed = self.probabilities(logits)
        entropy = -(mixed * mixed.clamp_min(1e-12).log()).sum(-1).mean()
        return {**super().penalties(logits, weight), "entropy": entropy}


@router("dense_to_sparse")
class DenseToSparse(Router):
    """softmax(scores / temperature), with Gumbel noise in training; experts far below the mean are dropped.

    Born with equal scores, so that parts of one layer, weighted by their number, are that layer exactly. `anneal` lowers
    the temperature. Nie et al. 2021, EvoMoE, https://arxiv.org/abs/2112.14397
    """

    fixed = follows_centres = False
    kept = "weights are not all one"
    hottest, coldest = 2.0, 0.1
    dropped = 0.5  # of 1 / experts
    temperature: Tensor

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        last = self.score if not hidden else list(self.score.children())[-1]
        for parameter in last.parameters():
            torch.nn.init.zeros_(parameter)
        start = torch.tensor(self.hottest, dtype=torch.float32, device=like.get("device"))
        self.register_buffer("temperature", start)

    @torch.no_grad()
    def anneal(self, progress: float) -> None:
        """From hottest (progress 0) to coldest (1), by equal factors."""
        done = min(max(progress, 0.0), 1.0)
        self.temperature.fill_(self.hottest * math.exp(done * math.log(self.coldest / self.hottest)))

    def scores(self, x: Tensor) -> Tensor:
        found = super().scores(x)
        if self.training:
            found = found + gumbel(found)
        return found

    def route(self, logits: Tensor) -> Tensor:
        share = torch.softmax(logits / self.temperature.to(logits.dtype), -1)
        share = torch.where(share * self.experts >= self.dropped, share, 0.0)
        share = share / share.sum(-1, keepdim=True)
        return share * self.experts if self.whole else share


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """0 below -gamma/2, 1 above gamma/2, and a cubic between them that meets both without a kink."""
    t = t.clamp(-gamma / 2, gamma / 2) / gamma
    return 0.5 + t * (1.5 - 2 * t.square())
