"""Gates on the rows of an embedding, which start open and harden while they are annealed; annealing of all gates that do."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.moe.router import Losses
from gatec.pruning import Annealed, hardened


class Selector(nn.Module):
    """One factor for each row: sigmoid(tau m) / sigmoid(m0), which is 1 at birth, where m = m0 and tau = 1.

    As tau grows the factor of a row becomes 1 / sigmoid(m0) or 0; with tau = inf it is one of the two, by the sign of m.
    """

    tau: Tensor
    start: Tensor

    def __init__(self, rows: int, start: float = 0.5, **like: object) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.full((rows,), start, **like))  # type: ignore[call-overload]
        self.register_buffer("start", torch.tensor(start, **like))  # type: ignore[arg-type]
        self.register_buffer("tau", torch.ones((), **like))  # type: ignore[call-overload]

    def forward(self, ids: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.losses = Losses(select=self.share(self.mask).mean())
        return (self.share(self.mask[ids]) / torch.sigmoid(self.start)).unsqueeze(-1)

    def anneal(self, progress: float, final: float) -> None:
        """tau = final^progress."""
        self.tau.fill_(final**progress)

    def share(self, mask: Tensor) -> Tensor:
        """How far rows are open, from 0 to 1."""
        return hardened(mask, self.tau)

    @property
    def factors(self) -> Tensor:
        return (self.share(self.mask) / torch.sigmoid(self.start)).detach()


def anneal(model: nn.Module, progress: float, *, final: float = 200.0) -> float:
    """Harden the gates that are annealed: at progress 0 they are as they were born, at 1 `final` times as hard, at inf steps.

    select, and sigmoid gates of `gatec.prune`   tau = final^progress
    polarised gates of `gatec.prune`             eps = 0.1 / final^progress
    """
    found = [m for m in model.modules() if isinstance(m, (Selector, Annealed))]
    if not found:
        raise GatecError(
            "a model with gates to anneal",
            found=f"none in {type(model).__name__}",
            hint='gatec.convert(model, "select")',
        )
    if not progress >= 0 or not 1 < final < math.inf:
        raise GatecError("a progress of 0 or more, and a final temperature above 1", found=f"{progress} and {final}")
    for gate in found:
        gate.anneal(progress, final)
    return float(final**progress)
