"""The choice of a way: from the table, or after it was verified in another process and measured in this one.

A call whose answer is not known runs what the graph had. Nothing here ever raises into the caller's forward.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gatec import settings
from gatec.dispatch.compiled import Compiled
from gatec.dispatch.cuda import Cuda, Device
from gatec.dispatch.forms import Exact, Form, described, exact
from gatec.dispatch.jobs import Job, Jobs
from gatec.dispatch.measure import fastest
from gatec.dispatch.table import Key, Record, Table
from gatec.dispatch.verify import Run, Trial
from gatec.dispatch.worker import Worker

REMEMBERED = 4096  # forms of operands for which a region keeps its answer in a dictionary
FAILED: dict[str, str] = {}  # what was reported in this process: region, side and way, and why it is never used


@dataclass(eq=False)
class Side:
    """One direction of one region: its ways, what they must beat (`eager`), and what gives the truth in float64.

    `operands` makes what is measured from what the region is called with: a backward needs a gradient too. `plain` is what
    a compiler may compile, if one is asked for.
    """

    region: str
    name: str
    ways: Mapping[str, Run]
    eager: Run
    exact: Run
    operands: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple
    plain: Run | None = None
    known: dict[Exact, Run | None] = field(default_factory=dict)

    @cached_property
    def with_inductor(self) -> Mapping[str, Run]:
        return self.ways if self.plain is None else {**self.ways, "inductor": Compiled(self.plain)}


@dataclass(frozen=True)
class Answer:
    """What was found in the table or measured while somebody waited."""

    side: Side
    key: Key
    record: Record


@dataclass
class Budget:
    """Milliseconds that measuring may take from the user's process."""

    key: float = settings.TUNE_KEY
    total: float = settings.TUNE_TOTAL
    spent: float = 0.0

    @property
    def left(self) -> float:
        return self.total - self.spent


class Chooser:
    """`way` answers within a dictionary lookup once it knows; `waiting` makes it wait for the other process."""

    def __init__(
        self, device: Device, table: Table, worker: Worker, budget: Budget, clock: Callable[[], float] = time.perf_counter
    ) -> None:  # fmt: skip
        self.device, self.table, self.budget, self.clock = device, table, budget, clock
        self.inductor = settings.INDUCTOR
        self._log: list[Answer] | None = None
        self._rests = False
        self._jobs = Jobs(worker)
        self._lock = threading.Lock()

    def way(self, side: Side, tensors: Sequence[Tensor]) -> Run | None:
        """The way to run for these operands, or None: what the graph had."""
        forms = exact(tensors)
        if self._log is None and forms in side.known:
            return side.known[forms]
        try:
            found, final = self._found(side, tensors)
        except torch.OutOfMemoryError:
            found, final = None, True
        except Exception as e:
            found, final = None, True
            self._report(f"{side.region} {side.name}", f"{type(e).__name__}: {str(e)[:160]}")
        if final:
            if len(side.known) >= REMEMBERED:
                side.known.clear()
            side.known[forms] = found
        return found

    @contextmanager
    def waiting(self, budget: Budget | None = None) -> Iterator[list[Answer]]:
        """Unknown keys are verified and measured at once, within a budget of their own; every answer is in the list."""
        before = self._log, self.budget
        log: list[Answer] = []
        self._log, self.budget = log, budget or self.budget
        try:
            yield log
        finally:
            self._log, self.budget = before

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Unknown keys stay unknown: what runs now is not what will run."""
        before, self._rests = self._rests, True
        try:
            yield
        finally:
            self._rests = before

    def ways(self, side: Side) -> Mapping[str, Run]:
        """Those of a side, and Inductor's where it is asked for."""
        return side.with_inductor if self.inductor else side.ways

    def _found(self, side: Side, tensors: Sequence[Tensor]) -> tuple[Run | None, bool]:
        """A way, and whether that is the last word."""
        if not self.ways(side) or any(not t.numel() or t.device != tensors[0].device for t in tensors):
            return None, True
        if self.device.capturing():  # nothing may be asked of the device: not even what its operands hold
            return None, False
        device = tensors[0].device
        key = self.key(side, tensors)
        record = self.table.find(key)
        if record is None and self._rests:
            return None, False
        if record is None:
            record, final = self._decided(side, key, tensors, device)
            if record is None:
                return None, final
        if self._log is not None:
            self._log.append(Answer(side, key, record))
        for way, why in record.failed.items():
            self._report(f"{side.region} {side.name} {way}", why)
        return self.ways(side).get(record.way), True

    def key(self, side: Side, tensors: Sequence[Tensor]) -> Key:
        """All that the answer depends on."""
        forms = described([Form.bare(t) for t in tensors])
        return Key({**self._version(side, tensors), "operands": forms})

    def _version(self, side: Side, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """What a failure holds for, at any size."""
        dtypes = [str(t.dtype)[6:] for t in tensors]
        identity = self.device.identity(tensors[0].device)
        return {"region": side.region, "side": side.name, "ways": sorted(self.ways(side)), "dtypes": dtypes, **identity}

    def _decided(
        self, side: Side, key: Key, tensors: Sequence[Tensor], device: torch.device
    ) -> tuple[Record | None, bool]:
        version = Key(self._version(side, tensors))
        bad = self.table.find(version) or Record("")
        untried = {n: w for n, w in self.ways(side).items() if n not in bad.failed}
        if not untried:
            return Record("", "no way of it is right on this device", failed=bad.failed), True
        if self.budget.left <= 0:
            return None, True
        job = self._asked(side, key, untried, tensors, device)
        if job is None:
            return None, True
        if not job.done.is_set() or (job.unanswered and not self._jobs.tired(key.digest)):
            return None, False
        failed = {**bad.failed, **job.failed}
        if failed:
            self.table.keep(version, Record("", "never used", failed=failed))
        right = {n: w for n, w in untried.items() if n in job.right}
        if not right:
            return self._kept(key, Record("", _why(failed, job.refused, job.unanswered), failed=failed), job), True
        patience = 0.0 if self._log is None else self.budget.left / 1000
        with self.table.alone(patience) as alone, self._mine() as mine:
            if not (alone and mine):
                return None, False
            known = self.table.find(key)  # by a process that measured while this one waited
            return known or self._kept(key, self._measured(side, right, tensors, device, failed), job), True

    def _asked(
        self, side: Side, key: Key, ways: Mapping[str, Run], tensors: Sequence[Tensor], device: torch.device
    ) -> Job | None:
        """The job which verifies these ways, under way or done; None where the device has no room for it."""
        job = self._jobs.find(key.digest)
        if job is None:
            if not self.device.room(device):
                return None
            operands = self.device.aside(device, lambda: side.operands(tensors))
            forms = tuple(Form.of(t) for t in operands)
            trials = {n: Trial(w, side.eager, side.exact, forms, str(device)) for n, w in ways.items()}
            job = self._jobs.start(key.digest, trials)
        if self._log is not None:
            job.done.wait()
        return job

    def _measured(
        self, side: Side, ways: Mapping[str, Run], tensors: Sequence[Tensor], device: torch.device, failed: Mapping[str, str]
    ) -> Record:  # fmt: skip
        start = self.clock()

        def work() -> Record:
            operands = side.operands(tensors)
            runs = {n: _bound(w, operands) for n, w in ways.items()}
            return fastest(
                runs, _bound(side.eager, operands), self.device.sample, min(self.budget.key, self.budget.left)
            )

        try:
            found: Record = self.device.aside(device, work)
        finally:
            self.budget.spent += 1000 * (self.clock() - start)
        return Record(found.way, found.why, found.times, failed)

    def _kept(self, key: Key, record: Record, job: Job) -> Record:
        """For good, unless some way got no answer: another process may get one."""
        if not job.unanswered:
            self.table.keep(key, record)
        return record

    @contextmanager
    def _mine(self) -> Iterator[bool]:
        """Whether no other thread is measuring."""
        mine = self._lock.acquire(blocking=self._log is not None)
        try:
            yield mine
        finally:
            if mine:
                self._lock.release()

    def _report(self, what: str, why: str) -> None:
        if what not in FAILED:
            FAILED[what] = why
            with suppress(RuntimeWarning):  # somebody's filter may make errors of warnings
                warnings.warn(f"gatec: {what} is not used: {why}", RuntimeWarning, stacklevel=2)


def _bound(run: Run, operands: Sequence[Tensor]) -> Callable[[], Any]:
    """Prepared once where a way asks for it: what a measurement does not count."""
    prepare = getattr(run, "prepared", None)
    return prepare(*operands) if prepare is not None else lambda: run(*operands)


def _why(*reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for some in reasons for name, why in some.items())


CHOOSER = Chooser(Cuda(), Table(settings.CACHE / "choices"), Worker(), Budget())
