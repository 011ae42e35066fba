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
    thread, lock, watching = threading.get_ident(), threading.Lock(), False

    def bark() -> None:
        with lock:
            if watching:
                _raised_in(thread, ctypes.py_object(Endless))

    @contextmanager
    def watched() -> Iterator[None]:
        nonlocal watching
        watching = True
        try:
            yield
        finally:
            with lock:
                watching = False
                _raised_in(thread, None)  # nor later, where it was not raised yet

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield watched
    finally:
        timer.cancel()


def _raised_in(thread: int, error: object) -> None:
    """Raise an error in a thread at its next instruction; None takes back one that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
