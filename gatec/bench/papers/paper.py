"""A folder of blocks from the literature: plain torch files that say what they hold, and know nothing of gatec."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gatec.errors import GatecError

Inputs = tuple[Tensor, ...]
FOLDER = Path(__file__).parents[3] / "examples" / "papers"  # of a checkout; the wheel does not hold it


@dataclass(frozen=True)
class Paper:
    """One file: `module()`, `inputs(batch, length)`, and `GATES`, pairs of the kind and the number of gates in it.

    VARIANTS  further keyword arguments of `module`, each with the same gates
    SKIPS     how many parts an export may leave out at run time, where a decision on data makes their result unused
    """

    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @cached_property
    def code(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"papers.{self.name}", self.file)
        assert spec is not None and spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = code
        spec.loader.exec_module(code)
        return code

    @property
    def title(self) -> str:
        return (self.code.__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def gates(self) -> dict[str, int]:
        return dict(self.code.GATES)

    @property
    def variants(self) -> list[dict[str, Any]]:
        return [{}, *getattr(self.code, "VARIANTS", [])]

    @property
    def skips(self) -> int:
        return getattr(self.code, "SKIPS", 0)

    def module(self, **options: Any) -> nn.Module:
        """Always the same weights."""
        torch.manual_seed(0)
        made: nn.Module = self.code.module(**options)
        return made

    def inputs(self, batch: int = 2, length: int = 6) -> Inputs:
        torch.manual_seed(batch * 1000 + length)
        made: Inputs = self.code.inputs(batch, length)
        return made

    def takes(self, option: str) -> bool:
        return option in inspect.signature(self.code.module).parameters

    @property
    def arguments(self) -> dict[str, bool]:
        """The inputs of a call, in order, and whether it may go without them."""
        parameters = inspect.signature(self.module().forward).parameters
        return {name: parameter.default is None for name, parameter in parameters.items()}


def papers(folder: Path = FOLDER) -> list[Paper]:
    """The files of a folder, in the order of their names."""
    found = [Paper(file) for file in sorted(Path(folder).glob("*.py"))]
    if not found:
        raise GatecError(
            "a folder of blocks: files with module(), inputs(batch, length) and GATES",
            found=f"no Python file in {folder}",
            hint="gatec bench papers in a checkout of gatec, or --folder with files of your own",
        )
    return found
