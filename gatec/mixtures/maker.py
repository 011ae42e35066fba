"""What becomes of a mixture: one kernel with each list of tiles, forward and backward, beside the library's products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.derive import derive
from gatec.keeping import Keeping
from gatec.kernel import Kernel
from gatec.kernels import grouped
from gatec.kernels.groups import FINE, TILES
from gatec.making import MAKERS, Run, origin, pull_of
from gatec.mixtures.library import Library
from gatec.mixtures.region import Mixture


def made(region: Mixture) -> Keeping:
    gate = region.inner.function()
    derived = derive(gate, region.inner.examples)
    scale = region.inputs[2].meta["val"].dtype
    kernel = grouped.render(region.name, origin(region), region.plan, derived.forward, derived.backward, scale=scale)
    library = Library(region.plan, gate, pull_of(gate, derived))
    tiles = FINE if region.examples[0].dtype == torch.float32 else TILES
    forward: dict[str, Run] = {t: partial(_run, kernel, "forward", t) for t in tiles}
    keeping: dict[str, Run] = {t: partial(_run, kernel, "forward_keeping", t) for t in tiles}
    backward: dict[str, Run] = {t: partial(_backward, kernel, t) for t in tiles}
    return Keeping(
        kernel, tuple(region.plan.operands), library.pull, forward, backward, library.room, library.keep, keeping,
        exact=library, blank=library.blank,
    )  # fmt: skip


MAKERS["mixture"] = made  # type: ignore[assignment]


def _run(kernel: Kernel, function: str, tiles: str, *operands: Tensor) -> Any:
    return getattr(kernel.load(), function)(*operands, config=tiles)


def _backward(
    kernel: Kernel, tiles: str, grad: Tensor, kept: Tensor, *operands: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    found = kernel.load().backward(grad, *operands, needs=tuple(needs), kept=kept, config=tiles)
    return [g for g in found if g is not None]
