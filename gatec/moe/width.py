"""A router that says how many of the first experts a token needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gatec.moe.router import Router, gumbel, router

WIDE = 5.0  # how far ahead the full width starts


@router("width")
class Width(Router):
    """The first w experts, w chosen by the largest score, with the gradient of the softmax; born at full width.

    `noise` scales Gumbel noise on the scores in training (1 draws widths as likely as the softmax says).
    Wojcik et al. 2023, "Adaptive Computation Modules", https://arxiv.org/abs/2312.10193;
    Jang et al. 2016, https://arxiv.org/abs/1611.01144
    """

    fixed = follows_centres = False
    noise = 0.0

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        super().build(width, hidden, like)
        self.lead = nn.Parameter(torch.zeros(self.experts, **like))
        with torch.no_grad():
            self.lead[-1] = WIDE

    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x) + self.lead

    def route(self, logits: Tensor) -> Tensor:
        noisy = logits
        if self.training and self.noise:
            noisy = logits + self.noise * gumbel(logits)
        share = torch.softmax(noisy, -1)
        best = torch.zeros_like(share).scatter(-1, noisy.argmax(-1, keepdim=True), 1.0)
        run, soft = self.at_least(best), self.at_least(share)
        weight = run + (soft - soft.detach())
        return weight if self.whole else weight / weight.sum(-1, keepdim=True)

    def at_least(self, share: Tensor) -> Tensor:
        """For each expert the share of widths that reach it."""
        return share.flip(-1).cumsum(-1).flip(-1)

    def penalties(self, logits: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """width    the mean share of experts that run, to be held down
        diversity  minus the variance of the width among tokens, as a share of its largest value
        """
        share = self.at_least(torch.softmax(logits.float(), -1)).mean(-1)
        return {"width": share.mean(), "diversity": -4 * share.var(correction=0)}
