"""prune(): a gate on every group of slots of a model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gatec.axes import Ledger, slots
from gatec.capture import emptied
from gatec.errors import GatecError
from gatec.history import remember
from gatec.inputs import one_call, pattern
from gatec.pruning.costs import Cost, counted, whole
from gatec.pruning.forms import ChannelGate
from gatec.pruning.forms import form as form_named
from gatec.pruning.group import RANKS, Group, Groups, Member, grouped
from gatec.pruning.keeping import equal_widths
from gatec.pruning.masking import FACTOR, SHUT, SILENT, Mask, mask, masked, unmask
from gatec.pruning.plain import packed, plain
from gatec.pruning.plan import Owners, owners
from gatec.verify import copied, filled

Model = TypeVar("Model", bound=nn.Module)
GATES = "channel_gates"
WATCHING = ("norm", "dotted", "scaled", "mixed", "computed")  # of these, no reader is a parameter itself


class ChannelGates(nn.ModuleDict):
    """The gates of a model by group, what it costs by what is counted and what with all slots, and groups that are kept
    equally wide: each with how often its slots lie in one head. `alike` are groups that are the same in other layers.
    """

    costs: dict[str, Cost]
    wholes: dict[str, float]
    even: list[list[tuple[str, int]]]
    alike: list[list[str]]

    def cost(self, costs: dict[str, Cost], sizes: Mapping[str, int]) -> None:
        """Count like this from now on."""
        self.costs, self.wholes = costs, {name: whole(cost, sizes) for name, cost in costs.items()}

    def forward(self, x: Any) -> Any:
        """Nothing: where the model is a chain of its children, they stand in it."""
        return x


def prune(
    model: Model,
    inputs: Any = None,
    *,
    form: str = "hard",
    kinds: Collection[str] | None = None,
    only: str | None = None,
) -> Model:
    """A copy of `model` with one trainable gate per channel, head, head dimension or feature of the residual stream.

    form     hard (straight-through step), hard_concrete (L0), scale (slimming), polarised (w^2 / (w^2 + eps)) or sigmoid
             (OptFS), both to be annealed; all are 1 at birth
    kinds    which groups: channels, heads, head dims, groups, residual; all of them by default
    only     a regular expression over names of groups

    The gates stand in `model.channel_gates`; every parameter that has a slot's positions is seen through them, so that a
    closed slot is zero wherever it is read. The names of the model's own parameters do not change. Raises GatecError where
    no group can be pruned; `print(gatec.groups(model))` says why.
    """
    form_named(form)
    kinds = {kinds} if isinstance(kinds, str) else kinds
    if odd := next((k for k in kinds or () if k not in RANKS), None):
        raise GatecError("kinds of groups", found=repr(odd), hint=f"some of {', '.join(sorted(RANKS))}")
    wanted = pattern(only, "names of groups")
    if has_gates(model):
        raise GatecError("a model without channel gates", found=f"gates in {type(model).__name__}",
                         hint="gatec.compact(model) decides them first")  # fmt: skip
    plain(model)
    model = copied(model)
    filled(model)
    ledger, (args, kwargs) = Ledger(), one_call(model, inputs)
    emptied(model, args, kwargs)
    found = grouped(model, args, kwargs, ledger)
    chosen = [g for g in found.free if (kinds is None or g.kind in kinds) and (wanted is None or wanted.search(g.name))]
    if not chosen:
        raise GatecError(f"a group of {type(model).__name__} to prune", found=_refusals(found),
                         hint="print(gatec.groups(model)) says why")  # fmt: skip
    _put(model, form, chosen, found, ledger)
    remember(model, {"channels": {"form": form, "groups": [g.name for g in chosen]}}, [])
    return model


def gated_again(model: Model, step: dict[str, Any], given: Any) -> Model:
    """The gates of a saved model, in place; their values come from its checkpoint."""
    wanted = set(step["channels"].get("groups", ()))
    ledger = Ledger()
    found = grouped(model, given[0], given[1], ledger)
    chosen = [g for g in found.free if g.name in wanted]
    if len(chosen) != len(wanted):
        missing = sorted(wanted - {g.name for g in chosen})
        raise GatecError(f"the gated groups of {type(model).__name__}", found=f"none at {missing[0]}",
                         hint="load into a fresh model of the same configuration")  # fmt: skip
    _put(model, str(step["channels"].get("form")), chosen, found, ledger)
    remember(model, step, [])
    return model


def _put(model: nn.Module, form: str, chosen: list[Group], found: Groups, ledger: Ledger) -> None:
    gates, kind = ChannelGates(), form_named(form)
    names, held = {g.atom: g.name for g in chosen}, owners(model)
    gates.cost(counted(found, ledger, names), {g.name: g.size for g in chosen})
    gates.even = _even(names, found)
    gates.alike = _alike(chosen)
    for group in chosen:
        like = found.walk.learned[group.learned[0].name]
        gate = kind(group.size, group.name, dtype=like.dtype, device=like.device).train(model.training)
        gates[group.name.replace(".", "/")] = gate
        _gated(group, gate, found, held)
    model.add_module(GATES, gates)


def _even(names: dict[Any, str], found: Groups) -> list[list[tuple[str, int]]]:
    """Widths of heads that are equal in one attention, where each is that of one gated group."""
    even = []
    for together in equal_widths(found.walk):
        widths = [
            [(names[atom], at.shape[1]) for atom, at in slots(axes).items() if atom in names] for axes in together
        ]
        even += [[w[0] for w in widths]] if all(len(w) == 1 for w in widths) else []
    return even


def _alike(chosen: list[Group]) -> list[list[str]]:
    """Groups whose members have the same names but for their numbers: those of one kind in all layers."""
    found: dict[Any, list[str]] = {}
    for group in chosen:
        found.setdefault(group.look, []).append(group.name)
    return [names for names in found.values() if len(names) > 1]


def has_gates(model: nn.Module) -> bool:
    return isinstance(model._modules.get(GATES), ChannelGates)


def _refusals(found: Groups) -> str:
    said = [f"{g.name} ({g.kind}): {g.refused or 'not chosen'}" for g in found]
    quantized = packed(found.model)
    return "; ".join(said[:3]) or (f"quantized weights, as in {quantized}" if quantized else "no group at all")


def _gated(group: Group, gate: ChannelGate, found: Groups, held: Owners) -> None:
    """Readers see the gate's factors; without a reader, all parameters do.

    What only writes a slot is left alone where nobody but readers looks at it: a closed gate then still learns, and may open
    again. Where a norm, an attention or a weight that is computed looks too, it sees what is closed.
    """
    reads = [(m.name, m.dim) in found.walk.contracted for m in group.learned]
    watched = any(f.kind in WATCHING for f in group.facts)
    for member, read in zip(group.learned, reads, strict=True):
        if (member.name, member.dim) in found.walk.divided:
            continue
        role = FACTOR if read or not any(reads) else SHUT if watched else SILENT
        _seen(found.walk.learned[member.name], member, gate, role, held)
    for member in (m for m in group.members if not m.learned and any(f.kind == "norm" for f in group.facts)):
        table = found.model.get_buffer(member.name)
        if table.dim() > 1:  # what is added for each position; zeros in a list of periods would be divided by
            _seen(table, member, gate, SHUT, held)


def _seen(value: Tensor, member: Member, gate: ChannelGate, role: str, held: Owners) -> None:
    """Let the modules that hold a parameter or buffer see it through a gate; running statistics are written, not only read."""
    index = np.full(value.shape[member.dim], gate.size)
    index[member.at] = np.arange(gate.size)[:, None]
    for module, name in held[id(value)]:
        if name in module._parameters or not isinstance(module, _NormBase):
            mask(module, name, Mask(gate, member.dim, torch.from_numpy(index), role))


def channel_gates(model: nn.Module) -> dict[str, ChannelGate]:
    """The gates of a pruned model by the name of their group."""
    if not has_gates(model):
        raise GatecError(
            "a model with channel gates", found=f"none in {type(model).__name__}", hint="gatec.prune(model, inputs)"
        )
    return {g.group: g for g in model.get_submodule(GATES).children() if isinstance(g, ChannelGate)}


def gates_of(model: nn.Module) -> ChannelGates:
    """The gates of a pruned model, with what it costs."""
    channel_gates(model)
    gates = model.get_submodule(GATES)
    assert isinstance(gates, ChannelGates)
    return gates


def ungate(model: nn.Module) -> None:
    """Fold the gates of a model into its weights, in place: closed slots are zeros."""
    for _, module in list(masked(model)):
        unmask(module)
    delattr(model, GATES)


@torch.no_grad()
def opened(model: Model) -> Model:
    """A copy without gates, in which nothing is closed."""
    model = copy.deepcopy(model)
    for gate in channel_gates(model).values():
        gate.weight.fill_(gate.birth())
    ungate(model)
    return model


def closed(model: nn.Module) -> dict[str, Tensor]:
    """Which slots of each gated group are closed."""
    return {name: gate.closed().cpu() for name, gate in channel_gates(model).items()}
