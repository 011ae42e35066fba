"""A gated MLP as a mixture of experts beside the dense one, forward, on the device at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.clock import medians
from gatec.pipeline import convert


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
    """Rows of (experts, top_k): milliseconds dense and routed, and their ratio. Active share = top_k / experts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, x = MLP(width, hidden).to(device), torch.randn(tokens, width, device=device)
    rows = []
    for count, chosen in ((8, 2), (16, 4), (32, 8), (8, 4)):
        routed = convert(dense, "moe", experts=count, top_k=chosen, inputs=x)
        with torch.no_grad():
            seconds = medians({"dense": lambda: _ran(dense, x), "routed": lambda m=routed: _ran(m, x)}, repeats)  # type: ignore[misc]
        rows.append({"experts": count, "top_k": chosen, **{k: round(v * 1e3, 2) for k, v in seconds.items()},
                     "dense / routed": round(seconds["dense"] / seconds["routed"], 2)})  # fmt: skip
    return rows


def _ran(model: nn.Module, x: Tensor) -> None:
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize()
