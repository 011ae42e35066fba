"""What must change beside the tensors when slots go: found by running every module again and comparing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gatec.axes import Axis, Walk, leaves, size
from gatec.capture.record import contents
from gatec.capture.spies import refill
from gatec.errors import in_short
from gatec.pruning.attention import attention
from gatec.pruning.folds import Fold, folds, norm_folds
from gatec.pruning.keeping import Closed, cuts, kept, left
from gatec.pruning.norms import narrowed, ways
from gatec.pruning.numbers import assignments
from gatec.pruning.plan import Plan, carried_out, number
from gatec.rewrite import Undo, back
from gatec.verify import distance

CLOSE = 1e-9  # in float64, relative: far above rounding, far below a change
TRIES = 256  # of a module's numbers
BEST = 4  # of the folds that are tried together with another one


class Unsolved(Exception):
    """A module that does not compute what it did, whatever its numbers are."""

    def __init__(self, path: str, why: str, runs: bool = False) -> None:
        super().__init__(why)
        self.path, self.why, self.runs = path, why, runs


Values = list[tuple[Tensor, list[Axis]]]


@dataclass
class Seen:
    """What one call of a module was given and returned, with the axes that it had then."""

    given: Values
    returned: Values
    drawing: Tensor  # the generator's state as it entered


Calls = dict[str, list[Seen]]


def recorded(calls: Calls) -> Callable[[Walk, str, Any, bool], None]:
    """Keeps every call of every module."""
    opened: list[Seen] = []

    def keep(walk: Walk, path: str, value: Any, enters: bool) -> None:
        with _disable_current_modes():
            found = [(t.detach().clone(), list(walk.of(t))) for t in tensors(value)]
        if enters:
            opened.append(Seen(found, [], torch.get_rng_state()))
        else:
            seen = opened.pop()
            seen.returned = found
            calls.setdefault(path, []).append(seen)

    return keep


def tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]


def cut(values: Values, closed: Closed) -> list[Tensor]:
    """The values without the slots that go."""
    found = []
    for value, dims in values:
        for n, dim in enumerate(dims):
            at = kept(dim, closed)
            value = value if at is None else value.index_select(n, torch.tensor(at))
        found.append(value)
    return found


@dataclass(frozen=True)
class Way:
    """One way of letting a module be what it was: its numbers, its norm's form, and a factor for rows of its weights."""

    numbers: tuple[tuple[str, Any], ...] = ()
    norm: Any = None
    fold: Fold | None = None


class Solver:
    """Runs a narrowed copy of a model, module by module, against what the whole one returned."""

    def __init__(self, model: nn.Module, walk: Walk, closed: Closed, seen: Calls) -> None:
        self.model, self.walk, self.closed, self.seen = model, walk, closed, seen
        self.plan = Plan(cuts(walk, closed))
        self.solved: dict[str, Way] = {}
        self.failed: Unsolved | None = None
        self.failures: dict[str, int] = {}

    def run(self, args: Any, kwargs: Any) -> Any:
        """The narrowed model's output; the plan then says what made it right. Raises Unsolved."""
        carried_out(self.model, self.plan, [])
        own: dict[str, Any] = {}
        for path in self._touched():
            module = self.model.get_submodule(path)
            own[path] = module.__dict__.get("forward")
            module.__dict__["forward"] = self._attempting(path, module, own[path])
        try:
            with torch.no_grad():
                out = self.model(*args, **kwargs)
        except Unsolved as e:
            raise self.failed or e from None
        except FAILURES as e:  # outside of every module that was mended: a container that takes a shorter way
            raise self.failed or Unsolved("", in_short(e)) from e
        finally:
            for path, forward in own.items():
                self.model.get_submodule(path).__dict__.pop("forward")
                if forward is not None:
                    self.model.get_submodule(path).__dict__["forward"] = forward
        for path, way in self.solved.items():
            self._note(path, way)
        return out

    def _note(self, path: str, way: Way) -> None:
        if way.numbers:
            self.plan.numbers[path] = dict(way.numbers)
        if way.norm:
            self.plan.norms[path] = way.norm
        if way.fold:
            self.plan.folds.append(way.fold)

    def _touched(self) -> list[str]:
        """The modules inside of which slots go, that have been called."""
        gone, found = set(self.closed), []
        for path, numbers in self.walk.numbers.items():
            if path in self.seen and any(gone.intersection(leaves(a)) for axes in numbers.values() for a in axes):
                found.append(path)
        return found

    def _attempting(self, path: str, module: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any]:
        """The module's forward; its first call looks for the way in which it is right, whatever it is given later."""

        def attempt(*args: Any, **kwargs: Any) -> Any:
            trial = Trial(self, path, module, own)
            if path not in self.solved:
                if not trial.search(args, kwargs):
                    self.failures[path] = self.failures.get(path, 0) + 1
                    failed = Unsolved(path, trial.why, trial.ran)
                    self.failed = self.failed or failed
                    raise failed
                torch.set_rng_state(self.seen[path][0].drawing)
            self.failed = None
            return trial.forward(args, kwargs)

        return attempt

    def _take(self, module: nn.Module, way: Way, undo: Undo) -> None:
        for name, value in way.numbers:
            number(module, name, value, undo)
        if way.norm:
            narrowed(module, way.norm, undo)
        if way.fold:
            way.fold.take(self.model, undo)

    def hopeless(self, path: str) -> bool:
        """Whether a module could not be mended twice: what is around it tries again and again."""
        return self.failures.get(path, 0) > 1

    def numbers(self, path: str, module: nn.Module) -> Iterator[Way]:
        """Values for the numbers of a module; of one that could not be mended before only the likeliest."""
        changes = {n: {left(a, self.closed) for a in axes} for n, axes in self.walk.numbers[path].items() if n > 1}
        for values in itertools.islice(assignments(module, changes), TRIES if not self.hopeless(path) else 1):
            yield Way(values)
        if how := attention(module):
            yield from (Way(values, norm=how) for values in itertools.islice(assignments(module, changes), TRIES))

    def mends(self, path: str, module: nn.Module) -> Iterator[Way]:
        """What may be wrong with a module that runs: a mean over fewer features."""
        normed = {a for a in self.closed if any(f.kind == "norm" and f.where == path for f in a.facts)}
        inside = [a for axes in self.walk.numbers[path].values() for a in axes if normed.intersection(leaves(a))]
        shares = {left(a, self.closed) / size(a) for a in [*inside, *((a,) for a in normed)]}
        for share in sorted(s for s in shares if s < 1):
            yield from (Way((changed,), fold=fold) for changed, fold in norm_folds(path, module, share))
            yield from (Way(norm=w) for w in ways(module, share))


@dataclass
class Trial:
    """The first call of a module of the narrowed model, with what the whole model gave to it, in one way after the other."""

    solver: Solver
    path: str
    module: nn.Module
    own: Callable[..., Any] | None
    why: str = "it does not run"
    ran: bool = False  # in some way, with another result
    apart: float = 0.0  # how far the last way was from what is wanted

    def forward(self, args: Any, kwargs: Any) -> Any:
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def search(self, args: Any, kwargs: Any) -> bool:
        """Leave the module in the first way in which it is right: its numbers first, then what else may be mended."""
        seen = self.solver.seen[self.path][0]
        given = _with(args, kwargs, cut(seen.given, self.solver.closed))
        wanted = cut(seen.returned, self.solver.closed)
        runs: list[Way] = []
        for way in self.solver.numbers(self.path, self.module):
            if self.right(way, given, wanted, runs):
                return True
        if self.solver.hopeless(self.path):
            return False
        for mend in self.solver.mends(self.path, self.module) if runs else ():
            for way in runs[:4]:
                if self.right(replace(mend, numbers=(*mend.numbers, *way.numbers)), given, wanted):
                    return True
        return any(self.folded(way, given, wanted) for way in runs[:4])

    def folded(self, way: Way, given: Any, wanted: list[Tensor]) -> bool:
        """A scale that follows the width: rows of one layer, or the best of these and those of another one."""
        parts = list(dict.fromkeys(folds(self.path, self.solver.walk, self.solver.closed)))
        tried = list[tuple[float, int]]()
        for n, fold in enumerate(parts):
            if self.right(replace(way, fold=fold), given, wanted):
                return True
            tried.append((self.apart, n))
        for _, n in sorted(tried)[:BEST]:
            for both in filter(None, map(parts[n].beside, parts)):
                if self.right(replace(way, fold=both), given, wanted):
                    return True
        return False

    def right(self, way: Way, given: Any, wanted: list[Tensor], runs: list[Way] | None = None) -> bool:
        """Whether the module computes what it did in one way; if not, it is as it was."""
        undo: Undo = []
        self.solver._take(self.module, way, undo)
        torch.set_rng_state(self.solver.seen[self.path][0].drawing)
        self.apart, before = float("inf"), [held for m in self.module.modules() for held in contents(m)]
        try:
            self.apart = _apart(tensors(self.forward(*given)), wanted)
        except FAILURES as e:
            if not self.ran:
                self.why = e.why if isinstance(e, Unsolved) else in_short(e)
        else:
            if self.apart <= CLOSE:
                self.solver.solved[self.path] = way
                return True
            self.why, self.ran = f"without these slots it would compute something else, by {self.apart:.1e}", True
            if runs is not None:
                runs.append(way)
        back(undo)
        for value, copy in before:  # what was computed in this way
            refill(value, copy)
        return False


def _with(args: Any, kwargs: Any, values: list[Tensor]) -> Any:
    """The arguments with the recorded numbers in place of those that came, where there are as many."""
    leaves, spec = tree_flatten((args, kwargs))
    at = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len(at) == len(values):
        for n, value in zip(at, values, strict=True):
            leaves[n] = value.clone()
    return tree_unflatten(leaves, spec)


FAILURES = (Unsolved, RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError, KeyError)


def _apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    if len(found) != len(wanted) or any(f.shape != w.shape for f, w in zip(found, wanted, strict=True)):
        return float("inf")
    return distance(found, wanted)
