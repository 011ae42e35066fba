"""One router fitted to what its experts give."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.moe.splits import Split
from gatec.moe.standin import StandIn, direction, least_squares, skipped
from gatec.partition import at_least_float32

CHUNK = 1024  # tokens whose experts are all run at a time
BATCH = 512
LOOKED_AT = 4096  # tokens from which an expert's direction is taken


@dataclass(frozen=True)
class Options:
    steps: int
    rate: float
    active: float | None
    seed: int


class Fit:
    """A router's fit on the rows x[tokens, width] that flow into its layer."""

    def __init__(self, site: Split, x: Tensor, options: Options) -> None:
        self.site, self.x, self.options = site, at_least_float32(x), options
        self.router, self.stand_in = site.router, site.stand_in

    @torch.no_grad()
    def run(self) -> None:
        if self.site.learns:
            self.train(self.router.score)
            tau = getattr(self.router, "tau", None)
            if tau is not None:
                self.search(tau)
        if self.stand_in is not None:
            self.solve(self.stand_in)

    def chunks(self) -> Iterator[Tensor]:
        return iter(self.x.split(CHUNK))

    @cached_property
    def lengths(self) -> Tensor:
        """How far each expert's output [tokens, experts] is from what stands in for it: from 0, or from the mean where skipped."""
        plain = torch.cat([self.site.outputs(x).norm(dim=-1) for x in self.chunks()])
        if self.stand_in is None:
            return plain
        small = 1.0 - torch.zeros_like(plain).scatter(1, plain.topk(self.router.top_k, -1).indices, 1.0)
        parts = zip(self.chunks(), small.split(CHUNK), strict=True)
        sums = sum(torch.einsum("ne,neo->eo", s, self.site.outputs(x)) for x, s in parts)
        mean = sums / small.sum(0).clamp_min(1).unsqueeze(-1)
        return torch.cat([(self.site.outputs(x) - mean).norm(dim=-1) for x in self.chunks()])

    def train(self, score: nn.Module) -> None:
        """Scores become the lengths, in units of their mean."""
        wanted = self.lengths / self.lengths.mean().clamp_min(torch.finfo(torch.float32).tiny)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.options.seed)
            student = copy.deepcopy(score).to(self.x)
            for layer in student.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            self.descend(student, wanted)
        for own, found in zip(score.parameters(), student.parameters(), strict=True):
            own.copy_(found)

    def descend(self, student: nn.Module, wanted: Tensor) -> None:
        optimizer = torch.optim.Adam(student.parameters(), self.options.rate)
        predicted = getattr(self.router, "predicted", nn.Identity())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.steps)
        for _ in range(self.options.steps):
            rows = torch.randint(len(self.x), (BATCH,)).to(self.x.device)
            found = student(self.x[rows])
            optimizer.zero_grad()
            F.mse_loss(predicted(found), wanted[rows]).backward()
            optimizer.step()
            schedule.step()

    def search(self, tau: Tensor) -> None:
        """The least tau at which the wanted share of experts runs, by halving."""
        share = self.options.active or self.router.top_k / self.router.experts
        low, high = 0.0, 1.0
        for _ in range(20):
            tau.fill_((low + high) / 2)
            ran = 1 - float(torch.cat(list(self.skipped())).mean())
            low, high = ((low + high) / 2, high) if ran < share else (low, (low + high) / 2)

    def skipped(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        for x in self.chunks() if rows is None else rows.split(CHUNK):
            routed = self.router(x.to(_dtype(self.router)))
            yield skipped(x, routed, self.router.experts, self.router.fixed)

    def solve(self, stand_in: StandIn) -> None:
        """Directions first, then the table for which the output is nearest to the dense layer's."""
        absent = torch.cat(list(self.skipped()))
        few = self.x[torch.linspace(0, len(self.x) - 1, min(LOOKED_AT, len(self.x))).long()]
        inner, down = self.site.routed(few)
        for e, rows in enumerate(torch.cat(list(self.skipped(few))).t() > 0):
            if int(rows.sum()) > 1:
                stand_in.score.weight[e] = direction(few[rows], inner[rows, e] @ down[:, e].t())
        parts = zip(self.chunks(), absent.split(CHUNK), strict=True)
        stand_in.table.copy_(least_squares((stand_in.features(x, s), self.site.sums(x, s)) for x, s in parts))


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)
