"""Kernel: generated source, and how to launch what stands in it."""

from __future__ import annotations

import hashlib
import linecache
import sys
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import cast

from torch import Tensor

from gatec import settings


@dataclass(frozen=True)
class Kernel:
    """The text of a module with `forward(*operands)` and `backward(grad, *operands, needs=...)`."""

    name: str
    source: str

    @property
    def key(self) -> str:
        """Equal for equal text, in every process and on every machine."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:12]

    def __reduce__(self) -> tuple[type[Kernel], tuple[str, str]]:
        """Without what was loaded: another process loads the text itself."""
        return Kernel, (self.name, self.source)

    def load(self) -> ModuleType:
        """The module, executed on the first call only."""
        return self._module

    def forward(self, *operands: Tensor) -> Tensor:
        return cast(Tensor, self._module.forward(*operands))

    def backward(
        self, grad: Tensor, *operands: Tensor, needs: tuple[bool, ...] | None = None
    ) -> tuple[Tensor | None, ...]:
        """One gradient for each operand, in its own shape; None where `needs` says no."""
        wanted = {} if needs is None else {"needs": needs}
        return cast(tuple[Tensor | None, ...], self._module.backward(grad, *operands, **wanted))

    @cached_property
    def _module(self) -> ModuleType:
        module = ModuleType(f"gatec.generated.{self.name}_{self.key}")
        module.__file__ = self._place()
        # Registered before it runs: triton and pickle look a function's module up by its name.
        sys.modules[module.__name__] = module
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)
        return module

    def _place(self) -> str:
        """Where inspect, triton and tracebacks find the text: a dumped file, or else linecache."""
        if settings.DUMP is not None:
            file = settings.DUMP / "kernels" / f"{self.name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.source)
            return str(file)
        place = f"<gatec kernel {self.name}_{self.key}>"
        # No modification time: checkcache() would drop an entry whose file is not on disk.
        linecache.cache[place] = (len(self.source), None, self.source.splitlines(True), place)
        return place
