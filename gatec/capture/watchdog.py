"""An end to forwards that never end."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic

__all__ = ["Endless", "monotonic", "watchdog"]


class Endless(BaseException):
    """Raised in the thread that traces, where no `except Exception` of the user's code catches it."""


@contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Raise Endless in this thread after so many seconds, even if all it does is to go round a loop.

    Only inside of what it gives: what stands around that can put everything back undisturbed.
    """
    thread, lock = threading.get_ident(), threading.Lock()
    watching = barked = False

    def bark() -> None:
        nonlocal barked
        with lock:
            if watching:
                barked = True
                _raise_in(thread)

    @contextmanager
    def watched() -> Iterator[None]:
        nonlocal watching
        watching = True
        try:
            yield
        finally:
            with lock:
                watching = False
            if barked:
                _quieten(thread)

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield watched
    finally:
        timer.cancel()


def _raise_in(thread: int) -> None:
    """Raise Endless in a thread at its next instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Endless))


def _quieten(thread: int) -> None:
    """Nor later, where it was not raised yet: it is raised here, once for all.

    Python can take it back as well, but then 3.11 hangs in this process as soon as somebody profiles it.
    """
    try:
        _raise_in(thread)
        while True:
            pass
    except Endless:
        pass
