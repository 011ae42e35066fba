"""What must change beside the tensors when slots go: found by running every module again and comparing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from gatec.axes import Axis, Walk, leaves
from gatec.pruning.folds import Fold, folds
from gatec.pruning.keeping import Closed, cuts, kept, left
from gatec.pruning.norms import narrowed, ways
from gatec.pruning.numbers import assignments
from gatec.pruning.plan import Plan, Undo, carried_out, number
from gatec.rewrite import back
from gatec.verify import distance

CLOSE = 1e-9  # in float64, relative: far above rounding, far below a change
TRIES = 256  # of a module's numbers


class Unsolved(Exception):
    """A module that does not compute what it did, whatever its numbers are."""

    def __init__(self, path: str, why: str, runs: bool = False) -> None:
        super().__init__(why)
        self.path, self.why, self.runs = path, why, runs


Outputs = dict[str, list[list[tuple[Tensor, list[Axis]]]]]


def recorded(outputs: Outputs) -> Callable[[Walk, str, Any], None]:
    """Keeps what every module returns, call by call, with the axes that it had then."""

    def keep(walk: Walk, path: str, out: Any) -> None:
        with _disable_current_modes():
            found = [(t.detach().clone(), list(walk.of(t))) for t in floats(out)]
        outputs.setdefault(path, []).append(found)

    return keep


def floats(out: Any) -> list[Tensor]:
    return [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]


@dataclass(frozen=True)
class Way:
    """One way of letting a module be what it was: its numbers, its norm's form, and a factor for rows of its weights."""

    numbers: tuple[tuple[str, Any], ...] = ()
    norm: Any = None
    fold: Fold | None = None


class Solver:
    """Runs a narrowed copy of a model, module by module, against what the whole one returned."""

    def __init__(self, model: nn.Module, walk: Walk, closed: Closed, outputs: Outputs) -> None:
        self.model, self.walk, self.closed, self.outputs = model, walk, closed, outputs
        self.plan = Plan(cuts(walk, closed))
        self.calls: dict[str, int] = {}
        self.solved: dict[str, Way] = {}
        self.failed: Unsolved | None = None
        self.failures: dict[str, int] = {}
        self.trusting = 0

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
            if path in self.outputs and any(gone.intersection(leaves(a)) for axes in numbers.values() for a in axes):
                found.append(path)
        return found

    def _attempting(self, path: str, module: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            trial = Trial(self, path, module, own, args, kwargs)
            found = trial.of(self.solved[path], taken=True) if path in self.solved else trial.search()
            if found is None:
                self.failures[path] = self.failures.get(path, 0) + 1
                failed = Unsolved(path, trial.why, trial.ran)
                self.failed = self.failed or failed
                raise failed
            self.calls[path] = trial.call + 1
            self.failed = None
            return found[0]

        return attempt

    def _take(self, module: nn.Module, way: Way, undo: Undo) -> None:
        for name, value in way.numbers:
            number(module, name, value, undo)
        if way.norm:
            narrowed(module, way.norm, undo)
        if way.fold:
            way.fold.take(self.model, undo)

    def _apart(self, path: str, call: int, out: Any) -> float:
        """How far a call's output is from what the whole model returned, without the slots that go."""
        calls = self.outputs[path]
        if call >= len(calls) or len(floats(out)) != len(calls[call]):
            return float("inf")
        return max(
            (_apart(f, w, d, self.closed) for f, (w, d) in zip(floats(out), calls[call], strict=True)), default=0.0
        )

    def numbers(self, path: str, module: nn.Module) -> Iterator[Way]:
        """Values for the numbers of a module; of one that could not be mended before only the likeliest."""
        changes = {n: {left(a, self.closed) for a in axes} for n, axes in self.walk.numbers[path].items() if n > 1}
        for values in itertools.islice(assignments(module, changes), TRIES if self.failures.get(path, 0) < 2 else 1):
            yield Way(values)

    def mends(self, path: str, module: nn.Module) -> Iterator[Way]:
        """What may be wrong with a module that runs: a mean over fewer features, a scale that follows the width."""
        shares = {
            left(a, self.closed) / n
            for n, axes in self.walk.numbers[path].items() for a in axes
            if any(f.kind == "norm" and f.where == path for x in leaves(a) if x in self.closed for f in x.facts)
        }  # fmt: skip
        for share in sorted(s for s in shares if s < 1):
            yield from (Way(norm=w) for w in ways(module, share))
        yield from (Way(fold=f) for f in folds(path, self.walk, self.closed))


@dataclass
class Trial:
    """One call of one module of the narrowed model, in one way after the other."""

    solver: Solver
    path: str
    module: nn.Module
    own: Callable[..., Any] | None
    args: Any
    kwargs: Any
    why: str = "it does not run"
    ran: bool = False  # in some way, with another result: what it was given may be at fault

    def __post_init__(self) -> None:
        self.before = dict(self.solver.calls)
        self.call = self.before.get(self.path, 0)

    def search(self) -> tuple[Any] | None:
        """The module's output in the first way in which it is right: its numbers first, then what else may be mended."""
        runs: list[Way] = []
        for way in self.solver.numbers(self.path, self.module):
            found = self.of(way, runs=runs)
            if found is not None:
                return found
        for mend in self.solver.mends(self.path, self.module) if runs else ():
            for way in runs[:4]:
                found = self.of(replace(mend, numbers=way.numbers))
                if found is not None:
                    return found
        return None

    def of(self, way: Way, *, taken: bool = False, runs: list[Way] | None = None) -> tuple[Any] | None:
        """The output in one way, if it is right; else the module is as it was."""
        solver, undo = self.solver, []  # type: tuple[Solver, Undo]
        solver.calls = dict(self.before)
        if not taken:
            solver._take(self.module, way, undo)
        solver.trusting += way.fold is not None
        try:
            out = (
                self.own(*self.args, **self.kwargs)
                if self.own
                else type(self.module).forward(self.module, *self.args, **self.kwargs)
            )
        except FAILURES as e:
            self.why = e.why if isinstance(e, Unsolved) else _said(e)
            if isinstance(e, Unsolved) and e.runs:
                self._ran(way, runs)
        else:
            apart = solver._apart(self.path, self.call, out)
            if apart <= CLOSE or solver.trusting > (way.fold is not None):
                solver.solved[self.path] = way
                return (out,)
            self.why = f"without these slots it would compute something else, by {apart:.1e}"
            self._ran(way, runs)
        finally:
            solver.trusting -= way.fold is not None
        back(undo)
        return None

    def _ran(self, way: Way, runs: list[Way] | None) -> None:
        self.ran = True
        if runs is not None:
            runs.append(way)


FAILURES = (Unsolved, RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError, KeyError)


def _said(e: Exception) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:120]}"


def _apart(found: Tensor, wanted: Tensor, dims: list[Axis], closed: Closed) -> float:
    for n, dim in enumerate(dims):
        at = kept(dim, closed)
        if at is not None:
            wanted = wanted.index_select(n, torch.tensor(at))
    if found.shape != wanted.shape:
        return float("inf")
    return distance(found, wanted)
