"""prune(): a gate on every group of slots; close(): which slots go; what a budget costs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pipeline import copied
from gatec.pruning.forms import ChannelGate
from gatec.pruning.forms import form as form_named
from gatec.pruning.groups import Group, Groups, groups
from gatec.pruning.masking import Mask, mask, masked
from gatec.pruning.plan import owners
from gatec.verify import filled, together

Model = TypeVar("Model", bound=nn.Module)
GATES = "channel_gates"


def prune(
    model: Model,
    inputs: Any = None,
    *,
    form: str = "hard",
    kinds: Collection[str] | None = None,
    only: str | None = None,
) -> Model:
    """A copy of `model` with one trainable gate per channel, head, head dimension or feature of the residual stream.

    form     hard (straight-through step), hard_concrete (L0) or scale (slimming); all are 1 at birth
    kinds    which groups: channels, heads, head dims, groups, residual; all of them by default
    only     a regular expression over names of groups

    The gates stand in `model.channel_gates`; every parameter that has a slot's positions is seen through them, so that a
    closed slot is zero wherever it is read. The names of the model's own parameters do not change. Raises GatecError where
    no group can be pruned; `print(gatec.groups(model))` says why.
    """
    kind = form_named(form)
    together(model)
    if any(True for _ in masked(model)):
        raise GatecError(
            "a model without channel gates",
            found=f"gates in {type(model).__name__}",
            hint="gatec.compact(model) decides them first",
        )
    model = copied(model)
    filled(model)
    found = groups(model, inputs)
    chosen = [g for g in found.free if (kinds is None or g.kind in kinds) and (only is None or re.search(only, g.name))]
    if not chosen:
        raise GatecError(
            f"a group of {type(model).__name__} to prune",
            found=_refusals(found, kinds, only),
            hint="print(gatec.groups(model))",
        )
    gates = nn.ModuleDict()
    for group in chosen:
        like = model.get_parameter(group.learned[0].name)
        gate = kind(group.size, group.name, dtype=like.dtype, device=like.device).train(model.training)
        gates[group.name.replace(".", "/")] = gate
        _gated(model, group, gate, found)
    model.add_module(GATES, gates)
    return model


def _refusals(found: Groups, kinds: Any, only: Any) -> str:
    said = [f"{g.name} ({g.kind}): {g.refused or 'not chosen'}" for g in found]
    return "; ".join(said[:3]) or "no group at all"


def _gated(model: nn.Module, group: Group, gate: ChannelGate, found: Groups) -> None:
    """Readers see the gate's factors, the rest only what is closed; without a reader, all see the factors."""
    reads = [found.walk.reads(m.name, m.dim) for m in group.learned]
    for member, read in zip(group.learned, reads, strict=True):
        value = model.get_parameter(member.name)
        index = torch.full((value.shape[member.dim],), group.size, dtype=torch.long)
        for slot, at in enumerate(member.at):
            index[torch.from_numpy(np.ascontiguousarray(at))] = slot
        for module, name in owners(model, member.name):
            mask(module, name, [Mask(gate, member.dim, index, read or not any(reads))])


def channel_gates(model: nn.Module) -> dict[str, ChannelGate]:
    """The gates of a pruned model by the name of their group."""
    gates = getattr(model, GATES, None)
    if not isinstance(gates, nn.ModuleDict):
        raise GatecError(
            "a model with channel gates", found=f"none in {type(model).__name__}", hint="gatec.prune(model, inputs)"
        )
    return {g.group: g for g in gates.values() if isinstance(g, ChannelGate)}


def close(model: nn.Module, which: Mapping[str, Any]) -> None:
    """Close slots by hand: a mask, or numbers of slots, by name of group."""
    gates = channel_gates(model)
    for name, slots in which.items():
        if name not in gates:
            raise GatecError("the name of a gated group", found=name, hint=f"one of {', '.join(list(gates)[:6])}")
        chosen = torch.as_tensor(np.asarray(slots))
        if chosen.dtype != torch.bool:
            chosen = torch.zeros(gates[name].size, dtype=torch.bool).index_fill_(0, chosen.long(), True)
        if chosen.shape != (gates[name].size,):
            raise GatecError(f"{gates[name].size} slots of {name}", found=str(tuple(chosen.shape)))
        gates[name].shut(chosen.to(gates[name].weight.device))


def closed(model: nn.Module) -> dict[str, Tensor]:
    """Which slots of each gated group are closed."""
    return {name: gate.closed().cpu() for name, gate in channel_gates(model).items()}
