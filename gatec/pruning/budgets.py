"""What gated models cost, and which of their slots to close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pruning.forms import ChannelGate
from gatec.pruning.gating import GATES, ChannelGates, channel_gates
from gatec.pruning.masking import SEEN, Mask, masked

OF = {"parameters": 0, "multiplications": 1}


def budget(model: nn.Module, of: str = "multiplications", *, decided: bool = False) -> Tensor:
    """What a pruned model costs as a share of the whole one, from 0 to 1, differentiable in its gates.

    of         parameters, or multiplications of parameters in the forward that the gates were put for
    decided    counts slots as open or closed, as they are now, not by how open they are

    A penalty for a training loop: `loss + 4 * (gatec.budget(model) - 0.5).clamp(min=0)`.
    """
    if of not in OF:
        raise GatecError("a cost that is counted", found=repr(of), hint=f"one of {', '.join(OF)}")
    channel_gates(model)
    gates = model.get_submodule(GATES)
    assert isinstance(gates, ChannelGates)
    shares = _shares(model, decided)
    whole = sum(cost[OF[of]] for cost in gates.costs.values())
    left = torch.stack([shares[n] * cost[OF[of]] for n, cost in gates.costs.items() if n in shares]).sum()
    return (left + sum(cost[OF[of]] for n, cost in gates.costs.items() if n not in shares)) / max(whole, 1)


def _shares(model: nn.Module, decided: bool) -> dict[str, Tensor]:
    """How much of each gated parameter is left."""
    opens = {id(g): _open(g, decided) for g in channel_gates(model).values()}
    found: dict[str, Tensor] = {}
    for path, module in masked(model):
        for name, masks in vars(module)[SEEN].items():
            full = f"{path}.{name}" if path else name
            dims: dict[int, Tensor] = {}
            for one in masks:
                dims[one.dim] = dims.get(one.dim, 1) * _positions(one, opens[id(one.gate)])
            found[full] = torch.stack([v.mean() for v in dims.values()]).prod()
    return found


def _open(gate: ChannelGate, decided: bool) -> Tensor:
    return (gate.settled() != 0).to(gate.weight.dtype).detach() if decided else gate.openness()


def _positions(one: Mask, opened: Tensor) -> Tensor:
    return torch.cat([opened, opened.new_ones(1)])[one.positions.to(opened.device)]


def close(model: nn.Module, which: Mapping[str, Any] | None = None, *, to: float | None = None, of: str = "multiplications",
          by: str = "weight", multiple: int = 1, least: int = 1, uniform: bool = False) -> None:  # fmt: skip
    """Close slots of a pruned model: those that are named, or the least important ones of all groups, down to a budget.

    which      a mask, or numbers of slots, by name of group
    to         the share of `of` (parameters, multiplications) that may be left
    by         what says how important a slot is: weight (of its gate), taylor (|gate x gradient|, after a backward
               pass) or magnitude (of its parameters); each relative to the mean of its group
    multiple   groups keep a multiple of so many slots, as far as they have them (8, 16, 64 for GPUs)
    least      groups keep at least so many
    uniform    layers keep as many as each other, so that a config can say how many that is
    """
    if which is not None:
        _named(model, which)
    if to is None:
        return
    if not 0 < to <= 1:
        raise GatecError("a share from 0 to 1", found=f"to={to}", hint="gatec.close(model, to=0.5)")
    scores = _ranked({name: _scores(model, gate, by) for name, gate in channel_gates(model).items()})
    before = {name: gate.weight.detach().clone() for name, gate in channel_gates(model).items()}
    low, high = 0, sum(len(s) for s in scores.values())
    while low < high:  # as few as are cheap enough
        middle = (low + high) // 2
        if _closed_below(model, scores, before, middle, multiple, least, of, uniform) <= to:
            high = middle
        else:
            low = middle + 1
    cost = _closed_below(model, scores, before, low, multiple, least, of, uniform)
    if cost > to:
        _restore(model, before)
        raise GatecError(f"a budget of at least {cost:.3f}, which is left where each group keeps {least}", found=f"to={to}",
                         hint="put gates on more groups, or let them keep fewer slots")  # fmt: skip


def _ranked(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The place of each slot in the order of all, the least important first; equal ones in turn from every group."""
    turns = torch.cat([torch.arange(len(s)) / len(s) for s in scores.values()])
    order = np.lexsort((turns.numpy(), torch.cat([s.double().cpu() for s in scores.values()]).numpy()))
    places = torch.empty(len(order), dtype=torch.long)
    places[torch.from_numpy(order)] = torch.arange(len(order))
    return dict(zip(scores, places.split([len(s) for s in scores.values()]), strict=True))


def _closed_below(model: nn.Module, scores: dict[str, Tensor], before: dict[str, Tensor], level: int, multiple: int, least: int,
                  of: str, uniform: bool) -> float:  # fmt: skip
    """What is left of the cost with the `level` least important slots closed."""
    _restore(model, before)
    gates = channel_gates(model)
    keeps = {name: max(least, int((score >= level).sum())) for name, score in scores.items()}
    keeps = {name: min(gates[name].size, -(-keep // multiple) * multiple) for name, keep in keeps.items()}
    for name, keep in _even(model, keeps, uniform).items():
        shut = torch.ones(gates[name].size, dtype=torch.bool)
        shut[scores[name].topk(keep).indices] = False
        gates[name].shut(shut.to(gates[name].weight.device))
    return float(budget(model, of, decided=True))


def _even(model: nn.Module, keeps: dict[str, int], uniform: bool) -> dict[str, int]:
    """Heads of one attention are kept equally wide, as wide as the widest of them would be."""
    gates, found = model.get_submodule(GATES), dict(keeps)
    assert isinstance(gates, ChannelGates)
    sizes = {name: gate.size for name, gate in channel_gates(model).items()}
    rules = [*gates.even, *([[(n, 1) for n in names] for names in gates.alike] if uniform else [])]
    for _ in range(len(rules) + 1):
        for together in rules:
            widest = max(found[name] * times for name, times in together)
            for name, times in together:
                found[name] = min(sizes[name], -(-widest // times))
    return found


@torch.no_grad()
def _restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, gate in channel_gates(model).items():
        gate.weight.copy_(before[name])


def _scores(model: nn.Module, gate: ChannelGate, by: str) -> Tensor:
    """How important each slot of a group is, relative to the mean of the group."""
    if by == "weight":
        found = gate.settled().abs() + gate.weight.detach()
        return found.detach()
    if by == "taylor":
        if gate.weight.grad is None:
            raise GatecError(
                "gradients of gates",
                found=f"none at {gate.group}",
                hint="loss.backward() before gatec.close(model, by='taylor')",
            )
        found = (gate.weight.grad * gate.settled()).abs()
    elif by == "magnitude":
        found = _magnitudes(model, gate)
    else:
        raise GatecError("a way of telling which slots matter", found=repr(by), hint="weight, taylor or magnitude")
    return (found / found.mean().clamp_min(torch.finfo(found.dtype).tiny)).detach()


@torch.no_grad()
def _magnitudes(model: nn.Module, gate: ChannelGate) -> Tensor:
    """The root of the sum of squares of everything that goes with a slot."""
    found = torch.zeros_like(gate.weight)
    for _, module in masked(model):
        for name, masks in vars(module)[SEEN].items():
            value = vars(module)["_parameters"][name].detach()
            for one in (m for m in masks if m.gate is gate and value.dim() > 1):
                sums = value.pow(2).sum([n for n in range(value.dim()) if n != one.dim])
                own = one.positions < gate.size
                found.index_add_(0, one.positions[own].to(found.device), sums[own].to(found.dtype))
    return found.sqrt()


def _named(model: nn.Module, which: Mapping[str, Any]) -> None:
    gates = channel_gates(model)
    for name, slots in which.items():
        if name not in gates:
            raise GatecError("the name of a gated group", found=name, hint=f"one of {', '.join(list(gates)[:6])}")
        chosen = torch.as_tensor(np.asarray(slots))
        if chosen.dtype != torch.bool:
            numbers, chosen = chosen.long(), torch.zeros(gates[name].size, dtype=torch.bool)
            if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < gates[name].size:
                raise GatecError(
                    f"numbers of slots from 0 to {gates[name].size - 1}", found=str(numbers.tolist()[:8]), where=name
                )
            chosen[numbers] = True
        if chosen.shape != (gates[name].size,):
            raise GatecError(f"a mask of {gates[name].size} slots", found=str(tuple(chosen.shape)), where=name)
        gates[name].shut(chosen.to(gates[name].weight.device))
