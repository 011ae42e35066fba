"""What every router is: scores of experts, a rule that chooses by them, and what it tells about its choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from gatec.errors import GatecError

Kind = TypeVar("Kind", bound="type[Router]")


class Losses(dict[str, Tensor]):
    """Of the last forward in training. Copies of a model start without: the graph of a loss cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Losses:
        return Losses()

    def __reduce__(self) -> Any:
        return Losses, ()


class Router(nn.Module):
    """A score for each expert, by a linear layer or by a small MLP, and a rule that chooses by them.

    forward(x[tokens, width]) gives (chosen[tokens, top_k], weight[tokens, top_k]) where every token has `top_k` experts
    (`fixed`), and else weight[tokens, experts], zero where an expert is not chosen.

    whole   experts are parts of one layer: a chosen one counts as 1, with the gradient of its score; else weights sum to 1
    hidden  width of the score's hidden layer; without one it is linear
    """

    fixed = True
    follows_centres = True
    kept = ""  # what is given up even if every expert may be chosen
    shared = 0  # experts that every token has besides
    order: Tensor
    seen: Tensor

    def __init__(
        self, width: int, experts: int, top_k: int, *, whole: bool = True, hidden: int = 0, tasks: int = 1, **like: Any
    ) -> None:
        super().__init__()
        self.experts, self.top_k, self.whole, self.tasks = experts, top_k, whole, tasks
        self.watched = False
        self.losses = Losses()
        self.register_buffer("seen", torch.zeros(experts, dtype=torch.long, device=like.get("device")), False)
        self.build(width, hidden, like)

    def reset_buffers(self) -> None:
        """What no checkpoint holds, as it is at first."""
        self.seen.zero_()

    def build(self, width: int, hidden: int, like: dict[str, Any]) -> None:
        self.score = scorer(width, self.experts, hidden, like)

    def forward(self, x: Tensor) -> Any:
        logits = self.scores(x)
        routed = self.route(logits)
        if (self.training or self.watched) and not isinstance(x, FakeTensor):
            self.tell(logits, self.dense(routed))
        return routed

    def tell(self, logits: Tensor, weight: Tensor) -> None:
        self.count(weight)
        if self.training:
            self.losses = Losses(self.penalties(logits, weight))

    def scores(self, x: Tensor) -> Tensor:
        found: Tensor = self.score(x)
        return found

    def route(self, logits: Tensor) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def start(self, centres: Tensor) -> None:
        """First scores: the product of a token with each expert's centre[experts, width]; an MLP keeps its random ones."""
        if not self.follows_centres:
            return
        for score in self.score if isinstance(self.score, nn.ModuleList) else [self.score]:
            if isinstance(score, nn.Linear):
                score.weight.copy_(F.normalize(centres, dim=1))

    # -- for rules ----------------------------------------------------------------------------------------------------

    def counted(self, score: Tensor, chosen: Tensor | float = 1.0) -> Tensor:
        """What chosen experts count, of their scores; `chosen` is 1 for them and 0 for the others."""
        if self.whole or (self.fixed and self.top_k == 1):  # a single weight is one, and would not learn
            return chosen * (1 + (score - score.detach()))
        weight = chosen * score
        return weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)

    def dense(self, routed: Any) -> Tensor:
        """weight[tokens, experts]"""
        if not self.fixed:
            weight: Tensor = routed
            return weight
        chosen, given = routed
        return torch.zeros(len(chosen), self.experts, dtype=given.dtype, device=given.device).scatter(1, chosen, given)

    # -- what it tells ------------------------------------------------------------------------------------------------

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float(), -1)

    def penalties(self, logits: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """balance     experts * sum of (share of tokens * mean probability), 1 if even. Fedus et al. 2021, Switch
        importance  squared coefficient of variation of the probabilities' sums. Shazeer et al. 2017
        z           mean square of log sum exp of the scores. Zoph et al. 2022, ST-MoE
        """
        mean = self.probabilities(logits).mean(0)
        share = (weight != 0).float().sum(0)
        share = share / share.sum().clamp_min(1)
        return {
            "balance": self.experts * (share * mean).sum(),
            "importance": mean.var(correction=0) / mean.mean().square(),
            "z": logits.float().logsumexp(-1).square().mean(),
        }

    @torch.no_grad()
    def count(self, weight: Tensor) -> None:
        self.seen += (weight != 0).sum(0)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, experts={self.experts}"


def scorer(width: int, out: int, hidden: int, like: dict[str, Any], seed: int = 0) -> nn.Module:
    """A linear layer that starts at zero, or an MLP."""
    if not hidden:
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, width, out, bias=False, **like)
        nn.init.zeros_(linear.weight)
        return linear
    with torch.random.fork_rng(devices=[]):  # the same everywhere, and nothing else draws differently
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out)).to(**like)


def summed(load: Tensor) -> Tensor:
    """Over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(load)
    return load


def gumbel(like: Tensor) -> Tensor:
    """Noise that makes the largest of logits + noise a draw from their softmax."""
    return -torch.empty_like(like).exponential_().log()


def bits(experts: int) -> int:
    """Of a code that can tell experts apart."""
    return max(1, math.ceil(math.log2(experts)))


ROUTERS: dict[str, type[Router]] = {}


def router(name: str) -> Callable[[Kind], Kind]:
    """Make a class of routers known to passes: `convert(model, "moe", router=name)`."""

    def known(kind: Kind) -> Kind:
        ROUTERS[name] = kind
        return kind

    return known


def router_named(name: str) -> type[Router]:
    if name not in ROUTERS:
        raise GatecError("a kind of router", found=repr(name), hint=f"one of {', '.join(ROUTERS)}")
    return ROUTERS[name]
