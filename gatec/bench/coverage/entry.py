"""A model of the sweep: which suite and family it stands for, how it is made, what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Built = tuple[nn.Module, Inputs]


@dataclass(frozen=True)
class Entry:
    """`make()` gives the model in eval mode and the arguments of one call; it may raise whatever the library raises."""

    suite: str
    family: str
    name: str
    make: Callable[[], Built]

    @property
    def spec(self) -> str:
        return f"{self.suite}:{self.name}"
