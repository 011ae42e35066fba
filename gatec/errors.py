"""The two ways gatec says no: an error to its user, and a refusal of one site."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class GatecError(Exception):
    """What was wanted, what was found, where, and what to try: four rows at most."""

    def __init__(self, wanted: str, *, found: str = "", where: str = "", hint: str = "") -> None:
        self.wanted, self.found, self.where, self.hint = wanted, found, where, hint
        super().__init__(wanted, found, where, hint)

    def __str__(self) -> str:
        rows = [("found", self.found), ("where", self.where), ("try", self.hint)]
        return "\n".join([f"gatec: {self.wanted}", *(f"  {k:<6}{v}" for k, v in rows if v)])


def first_line(error: BaseException) -> str:
    """What an exception says, as far as it fits into a line."""
    return next(iter(str(error).strip().splitlines()), "")[:160]


def in_short(error: BaseException) -> str:
    """The kind of an exception and its first line."""
    return f"{type(error).__name__}: {first_line(error)}"


class Refused(Exception):
    """One site was declined. Not an error: it becomes a line of the report."""

    _listening = threading.local()

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        told = getattr(self._listening, "told", None)
        if told is not None:
            told(self)

    @classmethod
    @contextmanager
    def heard(cls, told: Callable[["Refused"], None]) -> Iterator[None]:
        """Tell of every refusal in this thread, also of those that somebody's `except Exception` catches."""
        before = getattr(cls._listening, "told", None)
        cls._listening.told = told
        try:
            yield
        finally:
            cls._listening.told = before
