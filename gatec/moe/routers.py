"""Routers: to which experts a token goes, and what each of them counts there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.errors import GatecError


class Router(nn.Module):
    """A score for each expert, by a linear layer or by a small MLP, and a rule that chooses by them.

    forward(x[tokens, width]) gives (chosen[tokens, top_k], weight[tokens, top_k]) where every token has `top_k` experts
    (`fixed`), and else weight[tokens, experts], zero where an expert is not chosen.

    whole   experts are parts of one layer: a chosen one counts as 1, with the gradient of its score; else weights sum to 1
    hidden  width of the score's hidden layer; without one it is linear
    """

    fixed = True
    order: Tensor

    def __init__(
        self, width: int, experts: int, top_k: int, *, whole: bool = True, hidden: int = 0, **like: Any
    ) -> None:
        super().__init__()
        self.experts, self.top_k, self.whole = experts, top_k, whole
        self.score = scorer(width, experts, hidden, like)

    def forward(self, x: Tensor) -> Any:
        return self.route(self.score(x))

    def route(self, logits: Tensor) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def start(self, centres: Tensor) -> None:
        """First scores: the product of a token with each expert's centre[experts, width]; an MLP keeps its random ones."""
        if isinstance(self.score, nn.Linear):
            self.score.weight.copy_(F.normalize(centres, dim=1))

    def counted(self, weight: Tensor) -> Tensor:
        """What chosen experts count, of their scores."""
        if self.whole:
            return 1 + (weight - weight.detach())
        return weight / weight.sum(-1, keepdim=True)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, experts={self.experts}"


class Softmax(Router):
    """The largest of softmax(scores). Shazeer et al. 2017, https://arxiv.org/abs/1701.06538"""

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weight, chosen = torch.topk(torch.softmax(logits, -1), self.top_k, -1)
        return chosen, self.counted(weight)


def scorer(width: int, experts: int, hidden: int, like: dict[str, Any]) -> nn.Module:
    if not hidden:
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, width, experts, bias=False, **like)
        nn.init.zeros_(linear.weight)
        return linear
    return nn.Sequential(nn.Linear(width, hidden, **like), nn.ReLU(), nn.Linear(hidden, experts, **like))


ROUTERS: dict[str, Callable[..., Router]] = {"softmax": Softmax}


def router_named(name: str) -> Callable[..., Router]:
    if name not in ROUTERS:
        raise GatecError("a kind of router", found=repr(name), hint=f"one of {', '.join(ROUTERS)}")
    return ROUTERS[name]
