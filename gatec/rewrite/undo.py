"""A journal of what was changed, as steps that take it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Undo = list[Callable[[], Any]]


def back(steps: Undo) -> None:
    """Undo, newest first."""
    while steps:
        steps.pop()()
