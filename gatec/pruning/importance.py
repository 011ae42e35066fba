"""How important the slots of gated groups are, and a penalty that makes whole slots unimportant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pruning.forms import ChannelGate
from gatec.pruning.gating import channel_gates
from gatec.pruning.masking import SEEN, masked

NORMS = {"magnitude": "weights", "scale": "scales"}


def scores(model: nn.Module, by: str) -> dict[str, Tensor]:
    """How important each slot of each group is; but for weights of gates relative to the mean of the group."""
    gates = channel_gates(model)
    if by == "weight":
        if all(bool((gate.weight == gate.birth()).all()) for gate in gates.values()):
            raise GatecError("gates that have learned", found="all of them as they were born",
                             hint="train them, or gatec.close(model, ..., by='magnitude')")  # fmt: skip
        return {name: gate.learned() for name, gate in gates.items()}
    if by == "taylor":
        return {name: _relative(_taylor(gate)) for name, gate in gates.items()}
    if by not in NORMS:
        raise GatecError(
            "a way of telling which slots matter", found=repr(by), hint="weight, taylor, magnitude or scale"
        )
    with torch.no_grad():
        found, _ = squares(model, NORMS[by])
        return {name: _relative(found[gate].sqrt()) for name, gate in gates.items()}


def group_lasso(model: nn.Module, on: str = "weights") -> Tensor:
    """The sum over all slots of sqrt(n) |w|_2, where w are the n numbers that go with a slot: whole slots shrink together.

    on    weights (matrices and kernels), or scales: the weights of norms alone, whose lasso is that of network slimming

    A penalty on the model's own parameters, of any form of gates: `loss + 1e-4 * gatec.group_lasso(model)`; then
    `gatec.close(model, to=..., by="magnitude")`, or `by="scale"`.

    Wen et al. 2016, "Learning structured sparsity in deep neural networks", https://arxiv.org/abs/1608.03665
    Liu et al. 2017, "Learning efficient convolutional networks through network slimming", https://arxiv.org/abs/1708.06519
    """
    if on not in NORMS.values():
        raise GatecError("what a penalty is on", found=repr(on), hint="weights or scales")
    found, counts = squares(model, on)
    parts = [(count * (found[gate] + 1e-24)).sqrt().sum() for gate, count in counts.items() if count]
    if not parts:
        raise GatecError(f"{on} that go with gated slots", found="none", hint="group_lasso(model, on='weights')")
    return torch.stack([part.to(parts[0]) for part in parts]).sum()


def squares(model: nn.Module, on: str) -> tuple[dict[ChannelGate, Tensor], dict[ChannelGate, float]]:
    """For each gate the sum of squares of what goes with each slot, and how many numbers that are."""
    found = {gate: torch.zeros_like(gate.weight) for gate in channel_gates(model).values()}
    counts = dict.fromkeys(found, 0.0)
    for _, module in masked(model):
        for name, masks in vars(module)[SEEN].items():
            value = module._parameters.get(name)
            if value is None:  # a buffer, which learns nothing
                continue
            if value.dim() > 1 if on == "weights" else value.dim() == 1 and name == "weight":
                for one in masks:
                    sums = value.movedim(one.dim, 0).flatten(1).pow(2).sum(1) if value.dim() > 1 else value.pow(2)
                    own = one.positions < one.gate.size
                    like = found[one.gate]
                    at = one.positions[own].to(like.device)
                    found[one.gate] = like.index_add(0, at, sums[own].to(like))
                    counts[one.gate] += value.numel() / value.shape[one.dim] * int(own.sum()) / one.gate.size
    return found, counts


def _taylor(gate: ChannelGate) -> Tensor:
    if gate.weight.grad is None:
        raise GatecError("gradients of gates", found=f"none at {gate.group}",
                         hint="loss.backward() before gatec.close(model, by='taylor')")  # fmt: skip
    return (gate.weight.grad * gate.settled()).abs()


def _relative(found: Tensor) -> Tensor:
    """To the mean of the group; where nothing is known of it, all slots are as important as others are on average."""
    if not found.any():
        return torch.ones_like(found)
    return (found / found.mean().clamp_min(torch.finfo(found.dtype).tiny)).detach()
