"""Inductor as one of the ways to run a region, for who asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gatec.dispatch.verify import Run


@dataclass(eq=False)
class Compiled:
    """torch.compile of a function; what travels to another process is the function alone, and is compiled there again."""

    plain: Run
    _run: Run | None = field(default=None, init=False, repr=False)

    def __call__(self, *tensors: Tensor) -> Any:
        if self._run is None:
            self._run = torch.compile(self.plain, dynamic=False)
        return self._run(*tensors)

    def __reduce__(self) -> Any:
        return Compiled, (self.plain,)
