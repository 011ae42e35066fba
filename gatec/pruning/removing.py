"""Slots taken out of a model exactly: what goes, what must change with it, and what has to stay, in words."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gatec.axes import Atom, Axis, Walk, leaves, spelled_out, told, walked
from gatec.program import doubled
from gatec.pruning.exact import exactly, same_draws
from gatec.pruning.group import RANKS, Groups, found_in
from gatec.pruning.keeping import Closed, by_size, equal_widths, left
from gatec.pruning.plan import Plan
from gatec.pruning.solving import Calls, Solver, Unsolved, recorded
from gatec.verify import distance

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass
class Removal:
    """The plan, the slots that it removes by group, those that stay although they are closed and why, and the drift."""

    plan: Plan
    closed: dict[str, NDArray[np.bool_]]
    left: dict[str, str]
    walk: Walk
    atoms: Closed = field(default_factory=dict)
    drift: float = 0.0


def removal(model: nn.Module, closed: Masks, args: Any, kwargs: Any, *, exact: float = 1e-12) -> Removal:
    """How to remove the `closed` slots of a model, whose parameters are zero there, so that it computes the same.

    Everything is tried on copies in float64; a group that something counts on stays, in zeros.
    """
    model = copy.deepcopy(model).double().eval()
    args, kwargs = doubled((args, kwargs))
    seen: Calls = {}
    with exactly(), same_draws():
        walk = walked(model, args, kwargs, recorded(seen))
    groups, stays, wanted = found_in(model, walk), dict[str, str](), told(walk.out)
    masks, rules = {n: m for n, m in closed.items() if m.any()}, equal_widths(walk)
    evened = Evened(walk)
    while masks:
        masks = level(groups, masks, [*rules, *evened.rules], stays)
        solver = Solver(copy.deepcopy(model), walk, atoms(groups, masks), seen)
        try:
            with exactly(), same_draws(), spelled_out():
                drift = distance(told(solver.run(args, kwargs)), wanted)
        except Unsolved as e:
            evened.past(e.path)
            if not e.runs and evened.more(e.path, masks, set(atoms(groups, masks))):
                continue
            masks = evened.before or masks
            gone, why = _given_up(groups, masks, walk, e), f"{e.path or 'the model'}: {e.why}"
        else:
            if drift <= exact:
                return Removal(solver.plan, masks, stays, walk, atoms(groups, masks), drift)
            gone, why = _by_rank(groups, list(masks)), f"the model's output would move by {drift:.1e}"
        gone = _with_alike(groups, masks, gone, stays)
        stays |= dict.fromkeys(gone, why)
        masks = {n: m for n, m in masks.items() if n not in gone}
        evened.failed()
    return Removal(Plan(), {}, stays, walk)


@dataclass
class Evened:
    """Sizes that one number of a module's, or of what it is part of, may stand for: tried where a module does not run."""

    walk: Walk
    rules: list[list[Axis]] = field(default_factory=list)
    trying: list[str] = field(default_factory=list)  # modules whose sizes are even just now, to mend the first of them
    before: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    kept: int = 0
    hopeless: set[str] = field(default_factory=set)

    def more(self, path: str, masks: Masks, closing: set[Atom]) -> bool:
        """Make the sizes in a module even, then those in its parents; False where that has been tried."""
        if path in self.hopeless:
            return False
        if not self.trying or self.trying[0] != path:
            self.trying, self.before, self.kept = [path], dict(masks), len(self.rules)
        else:
            last = self.trying[-1]
            if not last or len(self.trying) > 2:
                return False
            del self.rules[self.kept :]
            self.trying.append(last.rpartition(".")[0])
        kind = type(self.walk.model.get_submodule(self.trying[-1]))
        for other, module in self.walk.model.named_modules():  # what holds for one module holds for all of its class
            if type(module) is kind:
                self.rules += _alike(self.walk, other, closing)
        return True

    def past(self, path: str) -> None:
        """Another module does not run now: what was tried has mended the one before."""
        if self.trying and self.trying[0] != path:
            self.trying, self.before = [], {}

    def failed(self) -> None:
        """What was tried last did not help."""
        if self.trying:
            del self.rules[self.kept :]
            self.hopeless.add(self.trying[0])
        self.trying, self.before = [], {}


def atoms(groups: Groups, masks: Masks) -> Closed:
    return {g.atom: masks[g.name] for g in groups if g.name in masks and g.atom is not None}


def level(groups: Groups, masks: Masks, rules: list[list[Axis]], stays: dict[str, str]) -> dict[str, NDArray[np.bool_]]:
    """Axes that are to be equally wide become so: what is closed beyond that stays, in zeros."""
    found, names = {n: m.copy() for n, m in masks.items()}, {g.atom: g.name for g in groups}
    while True:
        closed = atoms(groups, found)
        odd = next(filter(None, (_narrowest(together, closed) for together in rules)), None)
        if odd is None:
            return {n: m for n, m in found.items() if m.any()}
        axes, missing = odd
        atom = next(x for x in leaves(axes) if x in closed and closed[x].any())
        name = names[atom]
        shut = np.flatnonzero(found[name])
        before = left(axes, closed)
        found[name][shut[0]] = False
        step = max(1, left(axes, closed) - before)
        found[name][shut[1 : max(1, missing // step)]] = False
        stays[name] = (
            "some of its closed slots stay, as zeros: one number of the model's stands for several of its sizes"
        )


def _alike(walk: Walk, path: str, closing: set[Atom]) -> list[list[Axis]]:
    """Axes of one size in one module of which slots go."""
    inside = [a for axes in walk.numbers.get(path, {}).values() for a in axes if closing.intersection(leaves(a))]
    return by_size(inside)


def _narrowest(together: list[Axis], closed: Closed) -> tuple[Axis, int] | None:
    """Of axes that should be equally wide the one of which too much is closed, and by how much."""
    widths = [left(a, closed) for a in together]
    missing = max(widths) - min(widths)
    return (together[widths.index(min(widths))], missing) if missing else None


def _given_up(groups: Groups, masks: Masks, walk: Walk, e: Unsolved) -> list[str]:
    """The groups whose slots go inside of the module that cannot be mended, those first that are given up first."""
    inside = {atom for axes in walk.numbers.get(e.path, {}).values() for a in axes for atom in leaves(a)}
    return _by_rank(groups, [g.name for g in groups if g.name in masks and g.atom in inside] or list(masks))


def _with_alike(groups: Groups, masks: Masks, gone: list[str], stays: Mapping[str, str]) -> list[str]:
    """And those that are the same in other layers, once two layers have shown that they cannot go."""
    looks = {g.name: g.look for g in groups}
    before = [looks[n] for n in stays if n not in masks]
    hopeless = {looks[n] for n in gone if looks[n] in before}
    return [*gone, *(n for n in masks if n not in gone and looks[n] in hopeless)]


def _by_rank(groups: Groups, names: list[str]) -> list[str]:
    ranks = {g.name: RANKS.index(g.kind) for g in groups if g.name in names}
    return [n for n, rank in ranks.items() if rank == min(ranks.values())]
