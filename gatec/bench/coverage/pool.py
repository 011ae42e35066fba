"""Workers that may hang or crash: each task has a limit in CPU seconds, and its end is an answer.

CPU time, because a busy machine shall not turn a slow model into a refusal; a worker that only waits is ended after ten
times as long.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

Task = Any
RETIRES = 40  # tasks until a worker is replaced: what libraries keep grows with every model


def answers(work: Callable[[Task], Any], tasks: Iterable[Task], jobs: int, limit: float) -> Iterator[tuple[Task, Any]]:
    """(task, work(task)) as they come; a task that outlives `limit` or kills its process is answered with a str."""
    waiting: SimpleQueue[Task] = SimpleQueue()
    for task in (tasks := list(tasks)):
        waiting.put(task)
    done: SimpleQueue[tuple[Task, Any]] = SimpleQueue()
    for _ in range(jobs):
        waiting.put(None)
        threading.Thread(target=_feed, args=(work, waiting, done, limit), daemon=True).start()
    for _ in tasks:
        yield done.get()


def _feed(work: Callable[[Task], Any], waiting: SimpleQueue[Task], done: SimpleQueue[Any], limit: float) -> None:
    worker: _Worker | None = None
    while (task := waiting.get()) is not None:
        worker = worker or _Worker(work)
        answer = worker.ask(task, limit)
        done.put((task, answer))
        if worker.tired:
            worker.stop()
            worker = None
    if worker is not None:
        worker.stop()


class _Worker:
    """A process of its own and the pipe to it."""

    def __init__(self, work: Callable[[Task], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, there), daemon=True)
        self.process.start()
        there.close()
        self.asked, self.tired = 0, False
        self.pipe.recv()  # it has imported what it needs: from here on time is the task's

    def ask(self, task: Task, limit: float) -> Any:
        self.asked += 1
        self.tired = self.asked >= RETIRES
        self.pipe.send((task, limit))
        if not self.pipe.poll(10 * limit):
            self.tired = True
            return f"hung for more than {10 * limit:.0f} s"
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.tired = True
            late = self.process.exitcode == -signal.SIGPROF
            return f"took more than {limit:.0f} s" if late else f"its process ended with code {self.process.exitcode}"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(work: Callable[[Task], Any], pipe: Connection) -> None:
    pipe.send("ready")
    while True:
        task, limit = pipe.recv()
        signal.setitimer(signal.ITIMER_PROF, limit)  # its signal ends the process, wherever it is
        answer = work(task)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(answer)
