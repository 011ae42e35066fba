"""A gated MLP as a mixture of experts beside the dense one and transformers' experts on the same weights, forward."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.clock import medians
from gatec.moe import Router
from gatec.pipeline import convert
from gatec.vision import torchvision_loads

PEERS = ("eager", "grouped_mm", "batched_mm")  # transformers' own ways
SPLITS = ((8, 2), (16, 4), (32, 8), (8, 4))  # experts, and how many of them a token has
GATHERED = 64  # pairs up to which batched_mm runs: it gathers the matrices of an expert for each of them


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False) for a, b in ((width, hidden), (width, hidden), (hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def experts(width: int = 1024, hidden: int = 4096, tokens: int = 512, repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of (experts, top_k), for many tokens and for one: milliseconds of each way, and each one's share of gatec's.

    Active share = top_k / experts. One token takes so little that it runs ten times as often.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, x = MLP(width, hidden).to(device).eval(), torch.randn(tokens, width, device=device)
    rows = []
    for count, chosen in SPLITS:
        routed = convert(dense, "moe", experts=count, top_k=chosen, inputs=x).eval()
        ways: dict[str, Callable[[Tensor], Any]] = {"dense": dense, "gatec": routed}
        ways |= {way: theirs(routed, way) for way in PEERS}
        for some, times in ((x, repeats), (x[:1], repeats * 10)):
            row = timed(ways if len(some) * chosen <= GATHERED else without(ways, "batched_mm"), some, times)
            rows.append({"experts": count, "top_k": chosen, "tokens": len(some), **row})
    return rows


def without(ways: dict[str, Callable[[Tensor], Any]], name: str) -> dict[str, Callable[[Tensor], Any]]:
    return {n: way for n, way in ways.items() if n != name}


@torch.no_grad()
def timed(ways: dict[str, Callable[[Tensor], Any]], x: Tensor, repeats: int) -> dict[str, float]:
    seconds = medians({name: lambda way=way: _ran(way, x) for name, way in ways.items()}, repeats)  # type: ignore[misc]
    ours = seconds["gatec"]
    return {name: round(s * 1e3, 3) for name, s in seconds.items()} | {
        f"{name} / gatec": round(s / ours, 2) for name, s in seconds.items() if name != "gatec"
    }


def theirs(routed: Any, way: str) -> Callable[[Tensor], Any]:
    """Qwen3's experts by one of transformers' ways, with the weights and the router of a converted MLP."""
    torchvision_loads()
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    router = next(m for m in routed.modules() if isinstance(m, Router))
    up, gate = (layer.weight.detach().unflatten(0, (router.experts, -1)) for layer in (routed.up, routed.gate))
    config = SimpleNamespace(num_experts=router.experts, hidden_size=up.shape[2], moe_intermediate_size=up.shape[1],
                             hidden_act="silu", _experts_implementation=way)  # fmt: skip
    made = Qwen3MoeExperts(config)
    made.gate_up_proj = nn.Parameter(torch.cat([gate, up], 1))
    down = routed.down.weight.detach().unflatten(1, (router.experts, -1))
    made.down_proj = nn.Parameter(down.transpose(0, 1).contiguous())

    def run(x: Tensor) -> Any:
        chosen, weight = router(x)
        return made(x, chosen, weight)

    return run


def _ran(model: Callable[[Tensor], Any], x: Tensor) -> None:
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize()
