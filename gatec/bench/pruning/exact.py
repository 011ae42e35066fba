"""How far two models are apart, in float64 throughout, and weights that hide nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gatec.axes import told
from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.entry import Inputs
from gatec.program import doubled
from gatec.pruning.exact import exactly


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random where a fresh model is constant: norms, biases and branches that start as nothing would hide what is wrong."""
    drawn = torch.Generator().manual_seed(seed)
    running = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    learned = [p for p in model.parameters() if p.is_floating_point() and p.numel() > 1]
    for values in (*running, *(p for p in learned if bool((p == p.flatten()[0]).all()))):
        noise = torch.rand(values.shape, generator=drawn, dtype=torch.float64).to(values)
        values.add_(0.2 * noise - 0.1)
    return model


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The floating point numbers that a model in float64 answers with, the same draws every time."""
    torch.manual_seed(0)
    args, kwargs = copied(doubled(inputs))
    with torch.no_grad(), exactly():
        out = model(*args, **kwargs)
    return [t for t in tree_leaves(told(out)) if isinstance(t, Tensor) and t.is_floating_point()]


def drift(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference over the largest number; infinite where shapes differ or a number is none."""
    if [t.shape for t in wanted] != [t.shape for t in got]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, got, strict=True) if a.numel()]
    apart = [float((a - b).nan_to_num(torch.inf).abs().max() / a.abs().max().clamp(min=1e-300)) for a, b in pairs]
    return max(apart, default=0.0)
