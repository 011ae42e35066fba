"""An end to forwards that never end."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

__all__ = ["Endless", "monotonic", "watchdog"]


class Endless(BaseException):
    """Raised in the thread that traces, where no `except Exception` of the user's code catches it."""


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raise Endless in this thread after so many seconds, even if all it does is to go round a loop."""
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def bark() -> None:
        with lock:
            if not done:
                _raised_in(thread, ctypes.py_object(Endless))

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
            _raised_in(thread, None)  # nor later, where it was not raised yet
        timer.cancel()


def _raised_in(thread: int, error: object) -> None:
    """Raise an error in a thread at its next instruction; None takes back one that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
