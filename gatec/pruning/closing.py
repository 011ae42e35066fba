"""Which slots of gated models to close: those that are named, or the least important ones, down to a budget."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatec.clocks import Timer, seconds
from gatec.errors import GatecError
from gatec.inputs import one_call
from gatec.pruning.budgets import budget
from gatec.pruning.compacting import narrow
from gatec.pruning.gating import channel_gates, gates_of, opened
from gatec.pruning.importance import scores
from gatec.pruning.spending import spent

ROUNDS, TURNS = 5, 5  # of compacting, and of measuring both models
NEAR = 0.02  # to a budget is near enough


def close(model: nn.Module, which: Mapping[str, Any] | None = None, *, to: float | None = None, of: str = "multiplications",
          by: str = "weight", multiple: int = 1, least: int = 1, uniform: bool = False, inputs: Any = None,
          timer: Timer = seconds) -> None:  # fmt: skip
    """Close slots of a pruned model: those that are named, or the least important ones of all groups, down to a budget.

    which      a mask, or numbers of slots, by name of group
    to         the share of `of` (parameters, multiplications, memory, latency: see `gatec.budget`) that may be left
    by         what says how important a slot is: weight (of its gate), taylor (|gate x gradient|, after a backward
               pass), magnitude (of its parameters) or scale (of its norms' weights); the last three relative to the
               mean of the group
    multiple   groups keep a multiple of so many slots, as far as they have them (8, 16, 64 for GPUs)
    least      groups keep at least so many
    uniform    layers keep as many as each other, so that a config can say how many that is
    inputs     with them a copy is compacted and measured on them beside the whole model, and more or fewer slots are
               closed until that is what `to` says, within 2 %; `timer` is that of `gatec.profile`
    """
    _asked(which, to, multiple, least)
    if which is not None:
        _named(model, which)
    if to is None:
        return
    closer = Closer(model, _ranked(scores(model, by)), of, multiple, least, uniform)
    try:
        closer.down(to)
        if inputs is not None:
            _measured(closer, to, inputs, timer)
    except BaseException:
        closer.restore(closer.before)
        raise


def _asked(which: Any, to: Any, multiple: Any, least: Any) -> None:
    if which is None and to is None:
        raise GatecError(
            "slots to close, by name of group, or a budget", found="neither", hint="gatec.close(model, to=0.5)"
        )
    if to is not None and not (isinstance(to, (int, float)) and 0 < to <= 1):
        raise GatecError("a share from 0 to 1", found=f"to={to!r}", hint="gatec.close(model, to=0.5)")
    odd = [f"{name}={n!r}" for name, n in (("multiple", multiple), ("least", least)) if not isinstance(n, int) or n < 1]
    if odd:
        raise GatecError("a number of slots, 1 or more", found=odd[0], hint="gatec.close(model, to=0.5, multiple=8)")


def _measured(closer: Closer, to: float, inputs: Any, timer: Timer) -> None:
    """Aim lower or higher until the compacted model costs what it may."""
    plain, best = opened(closer.model), dict[float, dict[str, Tensor]]()
    args, kwargs = one_call(plain, inputs)
    aim, low, high = to, 0.0, 1.0  # what is aimed at is below `high`, and above `low` where too much was closed
    for _ in range(ROUNDS):
        small = copy.deepcopy(closer.model)
        narrow(small, inputs, [])
        share = median(
            spent(small, closer.of, args, kwargs, timer) / spent(plain, closer.of, args, kwargs, timer)
            for _ in range(TURNS if closer.of == "latency" else 1)
        )
        state = best[share] = closer.state()
        if abs(share / to - 1) <= NEAR:
            break
        low, high = (aim, high) if share < to else (low, aim)
        aim = aim * to / share
        aim = aim if low < aim < high else (low + high) / 2
        closer.down(aim)
        if share < to and all(torch.equal(state[name], weight) for name, weight in closer.state().items()):
            break  # training has closed more, or there is nothing between
    met = [s for s in best if s <= to * (1 + NEAR)]
    if not met:
        raise _unmet(min(best), to)
    closer.restore(best[max(met)])


def _unmet(cost: float, to: float) -> GatecError:
    return GatecError(f"a budget of at least {cost:.3f}, which is the least that these gates come to", found=f"to={to}",
                      hint="put gates on more groups, or let them keep fewer slots")  # fmt: skip


@dataclass
class Closer:
    """Closes the least important slots of a model; `ranks` are the places of each group's slots among all."""

    model: nn.Module
    ranks: dict[str, Tensor]
    of: str
    multiple: int
    least: int
    uniform: bool

    def __post_init__(self) -> None:
        self.before = self.state()

    def state(self) -> dict[str, Tensor]:
        return {name: gate.weight.detach().clone() for name, gate in channel_gates(self.model).items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, gate in channel_gates(self.model).items():
            gate.weight.copy_(state[name])

    def down(self, to: float) -> None:
        """As few as are cheap enough."""
        low, high = 0, sum(map(len, self.ranks.values()))
        while low < high:
            middle = (low + high) // 2
            if self.below(middle) <= to:
                high = middle
            else:
                low = middle + 1
        cost = self.below(low)
        if cost > to:
            raise _unmet(cost, to)

    def below(self, level: int) -> float:
        """What is left of the cost with the `level` least important slots closed."""
        self.restore(self.before)
        gates = channel_gates(self.model)
        keeps = {name: max(self.least, int((rank >= level).sum())) for name, rank in self.ranks.items()}
        keeps = {name: min(gates[name].size, -(-keep // self.multiple) * self.multiple) for name, keep in keeps.items()}
        for name, keep in _even(self.model, keeps, self.uniform).items():
            shut = torch.ones(gates[name].size, dtype=torch.bool)
            shut[self.ranks[name].topk(keep).indices] = False
            gates[name].shut(shut.to(gates[name].weight.device))
        return float(budget(self.model, self.of, decided=True))


def _ranked(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The place of each slot in the order of all, the least important first; equal ones in turn from every group."""
    turns = torch.cat([torch.arange(len(s)) / len(s) for s in scores.values()])
    order = np.lexsort((turns.numpy(), torch.cat([s.double().cpu() for s in scores.values()]).numpy()))
    places = torch.empty(len(order), dtype=torch.long)
    places[torch.from_numpy(order)] = torch.arange(len(order))
    return dict(zip(scores, places.split([len(s) for s in scores.values()]), strict=True))


def _even(model: nn.Module, keeps: dict[str, int], uniform: bool) -> dict[str, int]:
    """Heads of one attention are kept equally wide, as wide as the widest of them would be."""
    gates, found = gates_of(model), dict(keeps)
    sizes = {name: gate.size for name, gate in channel_gates(model).items()}
    rules = [*gates.even, *([[(n, 1) for n in names] for names in gates.alike] if uniform else [])]
    for _ in range(len(rules) + 1):
        for together in rules:
            widest = max(found[name] * times for name, times in together)
            for name, times in together:
                found[name] = min(sizes[name], -(-widest // times))
    return found


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
