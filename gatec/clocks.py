"""What running something takes on this machine: seconds, and bytes of tensors that are there at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Timer = Callable[..., float]  # seconds of timer(run, *args, **kwargs)
LEAST, MOST = 3, 50  # runs
ENOUGH, LONG = 0.03, 1.0  # seconds after which the least runs are enough, and after which one is


def clock() -> float:
    """Now, in seconds. One thread without a device has a clock of its own, which stands still while other programs run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def seconds(run: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """The fastest of several runs, after one that is not counted; of what takes long, of one."""
    run(*args, **kwargs)
    best, spent, runs = float("inf"), 0.0, 0
    while runs == 0 or (runs < LEAST and spent < LONG) or (runs < MOST and spent < ENOUGH):
        start = clock()
        run(*args, **kwargs)
        taken = clock() - start
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return best


class Alive:
    """The storages that operators have made and that are still there, each with what was said of it."""

    def __init__(self) -> None:
        self.there: dict[int, tuple[StorageWeakRef, Any]] = {}
        self.outside: dict[int, StorageWeakRef] = {}

    def note(self, given: Iterable[Tensor], made: Iterable[tuple[Tensor, Any]]) -> list[Any]:
        """What is there after an operator: what it was given comes from outside where no operator has made it."""
        for value in given:
            ref = _storage(value)
            if ref.cdata not in self.there:
                self.outside.setdefault(ref.cdata, ref)
        self.there = {key: kept for key, kept in self.there.items() if not kept[0].expired()}
        for value, said in made:
            ref = _storage(value)
            if ref.cdata not in self.outside:
                self.there.setdefault(ref.cdata, (ref, said))
        return [said for _, said in self.there.values()]


def _storage(value: Tensor) -> StorageWeakRef:
    return StorageWeakRef(value.untyped_storage())


class _Peak(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = Alive()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [(t, t.untyped_storage().nbytes()) for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.most = max(self.most, sum(self.alive.note(given, made)))
        return out


def peak(run: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """The bytes of the tensors that operators make and that are there at once: the most that there are."""
    watched = _Peak()
    with watched:
        run(*args, **kwargs)
    return watched.most
