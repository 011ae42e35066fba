"""groups(): which channels, heads and widths of a model can be removed, and what must go with each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from torch import nn

from gatec.axes import KERNEL, Atom, Ledger, Walk, slots, walked
from gatec.errors import GatecError, in_short
from gatec.inputs import one_call
from gatec.pruning.plain import plain
from gatec.report.drawing import widths

KINDS = {"batch": "heads", "groups": "groups", "scaled": "head dims", "dotted": "head dims", "mixed": "head dims"}
RANKS = ("head dims", "groups", "heads", "channels", "residual")  # all kinds; those first that are given up first


@dataclass(frozen=True)
class Member:
    """One dimension of a tensor in which a group's slots lie: `at` are their positions [slots, times]."""

    name: str
    dim: int
    at: NDArray[np.int64] = field(repr=False)
    learned: bool = True

    def __str__(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(frozen=True)
class Group:
    """`size` slots, each of which is a set of positions in dimensions of tensors that can only be removed together.

    `refused` says why none of them can be; "" where they can. `facts` are what the model does with the slots (norm, batch ...).
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    refused: str = ""
    facts: tuple[Any, ...] = ()
    atom: Atom | None = field(default=None, repr=False, compare=False)

    @property
    def learned(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.learned)

    @property
    def look(self) -> tuple[int, tuple[str, ...]]:
        """What groups that are the same in other layers have in common: their size, and names with every number left open."""
        return self.size, tuple(sorted(alike(str(m)) for m in self.members))

    def __repr__(self) -> str:
        return f"Group({self.name}: {self.size} {self.kind}{', refused' if self.refused else ''})"


class Groups(tuple[Group, ...]):
    """The groups of a model in the order of its parameters; those that can be pruned are `free`."""

    model: nn.Module
    walk: Walk

    @property
    def free(self) -> list[Group]:
        return [g for g in self if not g.refused]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            found = next((g for g in self if g.name == key), None)
            if found is None:
                raise GatecError("the name of a group", found=key, hint=f"one of {', '.join(g.name for g in self[:6])}")
            return found
        return super().__getitem__(key)

    @property
    def covered(self) -> float:
        """The share of the model's parameters that removing slots makes smaller."""
        reach: dict[str, dict[int, set[int]]] = {}
        for member in (m for g in self.free for m in g.learned):
            reach.setdefault(member.name, {}).setdefault(member.dim, set()).update(member.at.flatten().tolist())
        sizes = dict(self.model.named_parameters())
        whole = sum(p.numel() for p in sizes.values())
        return sum(
            sizes[n].numel() * max(len(at) / sizes[n].shape[d] for d, at in dims.items()) for n, dims in reach.items()
        ) / max(whole, 1)

    def graph(self) -> Any:
        """A networkx graph: a node for each group and each tensor, an edge where slots of one lie in the other."""
        found = nx.Graph()
        for group in self:
            found.add_node(group.name, size=group.size, kind=group.kind, refused=group.refused)
            found.add_edges_from((group.name, m.name, {"dim": m.dim}) for m in group.members)
        return found

    def svg(self) -> str:
        """A picture: a bar for each group, empty for those that are refused."""
        return widths([(g.name, g.kind, 0 if g.refused else g.size, g.size) for g in self])

    def __str__(self) -> str:
        rows = [f"{g.name:<48} {g.kind:<10} {g.size:>6}  {g.refused or ', '.join(map(str, g.members))}" for g in self]
        return "\n".join(
            [
                *rows,
                f"{len(self.free)} of {len(self)} groups can be pruned; they reach {self.covered:.1%} of the parameters",
            ]
        )


def groups(model: nn.Module, inputs: Any = None) -> Groups:
    """The groups of slots of a model that can only be removed together, found in one forward in eval mode.

    Every tensor carries the axes of its dimensions through the forward: operators that move numbers move the axes,
    operators that compute make the axes equal that they align. An operator that is not known is no element-wise one:
    what it reads cannot be removed, and the group says so. `print(groups)` lists them, `groups.graph()` is a networkx graph.
    """
    if not isinstance(model, nn.Module):
        raise GatecError("a torch.nn.Module", found=type(model).__name__)
    plain(model)
    return grouped(model, *one_call(model, inputs))


def grouped(model: nn.Module, args: Any, kwargs: Any, ledger: Ledger | None = None) -> Groups:
    """The groups of a model's forward, which a ledger may write down."""
    try:
        walk = walked(model, args, kwargs, spend=ledger)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as e:
        raise GatecError(f"example inputs that {type(model).__name__} takes", found=in_short(e),
                         hint="gatec.groups(model, inputs) with what model(...) runs on") from e  # fmt: skip
    return found_in(model, walk)


def found_in(model: nn.Module, walk: Walk) -> Groups:
    found = Groups(_groups(model, walk))
    found.model, found.walk = model, walk
    return found


def _groups(model: nn.Module, walk: Walk) -> Iterator[Group]:
    members: dict[Atom, list[Member]] = {}
    learned = dict(model.named_parameters())
    missed = {alike(n): n for n in unreached(model, walk)}
    for name, dims in walk.tensors.items():
        for dim, one in enumerate(dims):
            for atom, at in slots(one).items():
                if atom.size > 1:
                    members.setdefault(atom, []).append(Member(name, dim, at, name in learned))
    names: dict[str, int] = {}
    for atom, own in members.items():
        if not any(m.learned for m in own) or KERNEL in atom.pins:
            continue
        why = next(iter(atom.pins), "") or _missing(own, missed)
        yield Group(_name(own, names), _kind(atom), atom.size, tuple(own), why, tuple(atom.facts), atom)


def unreached(model: nn.Module, walk: Walk) -> list[str]:
    """Parameters that the forward has not come by."""
    return [name for name, value in model.named_parameters() if value not in walk.reached]


def alike(name: str) -> str:
    """The name of a parameter with every number left open: one for all experts, or all layers."""
    return re.sub(r"\d+", "*", name)


def _missing(own: list[Member], missed: dict[str, str]) -> str:
    """What the forward has not come by may count on the size of what it has: an expert that no token chose, a branch."""
    here = [missed[alike(m.name)] for m in own if alike(m.name) in missed]
    return f"the forward has not come by {here[0]}" if here else ""


def _kind(atom: Atom) -> str:
    kinds = [KINDS[f.kind] for f in atom.facts if f.kind in KINDS]
    return kinds[0] if kinds else "residual" if any(f.kind == "norm" for f in atom.facts) else "channels"


def _name(own: list[Member], names: dict[str, int]) -> str:
    """The module that all members lie below, with a number where it has several groups."""
    paths = [m.name.split(".")[:-1] for m in own if m.learned]
    common = paths[0]
    for path in paths[1:]:
        common = common[
            : next(
                (n for n, (a, b) in enumerate(zip(common, path, strict=False)) if a != b), min(len(common), len(path))
            )
        ]
    name = ".".join(common) or "model"
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"
