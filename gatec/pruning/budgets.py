"""What gated models cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pruning.gating import channel_gates, gates_of


def budget(model: nn.Module, of: str = "multiplications", *, decided: bool = False) -> Tensor:
    """What a pruned model costs as a share of the whole one, from 0 to 1, differentiable in its gates.

    of         parameters, multiplications (of parameters, in the forward that the gates were put for), memory (bytes of
               parameters and of the most results that are there at once in that forward) or latency (seconds that
               `gatec.profile` has measured)
    decided    counts slots as open or closed, as they are now, not by how open they are

    A penalty for a training loop: `loss + 2 * (gatec.budget(model) / gatec.schedule(step / steps, 0.5) - 1).abs()`. A clamp
    at zero in place of `abs` never opens what one step has closed too much of.
    """
    gates = gates_of(model)
    if of not in gates.costs and of == "latency":
        raise GatecError("operators that are timed", found="no times of this model's",
                         hint="gatec.profile(model, inputs) measures them on this machine")  # fmt: skip
    if of not in gates.costs:
        raise GatecError(
            "a cost that is counted", found=repr(of), hint="one of parameters, multiplications, memory, latency"
        )
    found = gates.costs[of].of(_widths(model, decided)) / max(gates.wholes[of], 1e-30)
    kind = next(iter(channel_gates(model).values())).weight.dtype
    return torch.as_tensor(found).to(torch.promote_types(kind, torch.float32))


def _widths(model: nn.Module, decided: bool) -> dict[str, Tensor]:
    """How many slots of each group are left."""
    found = {}
    for name, gate in channel_gates(model).items():
        opened = (gate.settled() != 0).detach() if decided else gate.openness()
        found[name] = opened.sum(dtype=torch.float64)
    first = next(iter(found.values())).device
    return {name: width.to(first) for name, width in found.items()}
