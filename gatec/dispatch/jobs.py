"""Verifications under way: one thread hands them to the worker, in the order in which they came."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from gatec.dispatch.verify import Trial
from gatec.dispatch.worker import Unanswered, Worker

ATTEMPTS = 2  # at a question that got no answer, before a process gives it up


@dataclass
class Job:
    """`right` may be measured, `failed` never runs again with these versions, `refused` not with these operands."""

    trials: Mapping[str, Trial]
    right: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """By key."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: dict[str, Job] = {}
        self._attempts: dict[str, int] = {}
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def find(self, key: str) -> Job | None:
        return self._jobs.get(key)

    def start(self, key: str, trials: Mapping[str, Trial]) -> Job:
        with self._lock:
            job = self._jobs.setdefault(key, Job(trials))
            if job.trials is trials:
                self._queue.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gatec-verify", daemon=True)
                self._thread.start()
        return job

    def tired(self, key: str) -> bool:
        """Forget an unanswered question, so that it is asked again; True once it was asked often enough."""
        with self._lock:
            self._jobs.pop(key, None)
            self._attempts[key] = self._attempts.get(key, 0) + 1
            return self._attempts[key] >= ATTEMPTS

    def _run(self) -> None:
        while True:
            job = self._queue.get()
            try:
                for name, trial in job.trials.items():
                    self._ask(job, name, trial)
            finally:
                job.done.set()

    def _ask(self, job: Job, name: str, trial: Trial) -> None:
        try:
            why = self._worker.ask(trial)
        except Unanswered as e:
            job.unanswered[name] = str(e)
            return
        except Exception as e:  # of the protocol: whatever it was, the way is not proven
            job.unanswered[name] = f"{type(e).__name__}: {e}"
            return
        if not why:
            job.right.add(name)
        elif why.startswith("TypeError"):  # a kernel's own word for operands that are not its own
            job.refused[name] = why
        else:
            job.failed[name] = why
