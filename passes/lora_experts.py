"""Low-rank experts: what a router adds to a linear layer for every token, of experts that are two thin matrices each.

    before    y = layer(x)
    after     y = layer(x) + alpha / rank * sum of w_e(x) * B_e(A_e(x)) over the chosen experts e,    B = 0 at birth

Born neutral, to the bit; weights w sum to one. The layer itself stays as it is: `gatec.gate_parameters` are the router, A and B.
Li et al. 2024, "MixLoRA", https://arxiv.org/abs/2404.15159; Hu et al. 2021, "LoRA", https://arxiv.org/abs/2106.09685
"""

import math

import torch
from torch import Tensor, nn

from gatec import Case, Gate, GatecError, Linear, here, pairs_of, router_named


def linear(x: Tensor, layer: Linear):
    return here(layer(x))


def check(site, layer, *, experts: int = 4, top_k: int = 2, rank: int = 8, router: str = "softmax") -> None:
    router_named(router)
    if not 1 <= top_k <= experts or rank < 1:
        found = f"experts={experts}, top_k={top_k}, rank={rank}"
        raise GatecError(
            "1 <= top_k <= experts and a rank of at least 1", found=found, hint="lora_experts(experts=4,rank=8)"
        )


def after(site, here, x, layer, *, experts: int = 4, top_k: int = 2, rank: int = 8, alpha: float = 16.0,
          router: str = "softmax", hidden: int = 0, tasks: int = 1, seed: int = 0):  # fmt: skip
    like, width, out = site.like(layer), layer.in_features, layer.out_features

    def routes() -> nn.Module:
        return router_named(router)(width, experts, top_k, whole=False, hidden=hidden, tasks=tasks, **like)

    def inwards() -> nn.Parameter:
        drawn = torch.rand(experts, rank, width, generator=torch.Generator().manual_seed(seed))
        return nn.Parameter(((2 * drawn - 1) / math.sqrt(width)).to(**like))

    route = site.add("lora_router", routes, near=layer)
    a = site.add("lora_a", inwards, near=layer)
    b = site.add("lora_b", lambda: nn.Parameter(torch.zeros(experts, out, rank, **like)), near=layer)
    flat = x.reshape(-1, width)
    pairs = pairs_of(route(flat), site.added_value("lora_router"))
    found = pairs.combine(pairs.linear(pairs.weighed(pairs.linear(pairs.gather(flat), a)), b), flat)
    return here + (found * (alpha / rank)).reshape(here.shape)


def birth(site, layer, *, experts: int = 4, seed: int = 0) -> None:
    """Scores that differ, so that tokens do: equal ones would always choose the same experts."""
    drawn = torch.randn(
        experts, site.added_value("lora_a").shape[-1], generator=torch.Generator().manual_seed(seed + 1)
    )
    site.added_value("lora_router").start(drawn.to(layer.weight))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(linear,), after=after, check=check, birth=birth,
    cases=(
        Case("an MLP's layers", mlp, X, put=2),
        Case("one of two", lambda: nn.Linear(8, 3), X, options={"experts": 2, "top_k": 1, "rank": 1}),
        Case("dynamic", lambda: nn.Linear(8, 3), X, options={"router": "dynamic"}),
    ),
)  # fmt: skip
