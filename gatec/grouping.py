"""`gatec::grouped_linear` and its ragged gradient on CUDA: the generated kernel beside torch's grouped product."""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import Tensor

from gatec.dispatch import CHOOSER, Run, Side
from gatec.grouped import linear_op, outer, outer_op, product
from gatec.kernel import Kernel
from gatec.kernels.grouped import DTYPES, linear
from gatec.kernels.groups import FINE, TILES

BODIES = {"linear": (product, "forward"), "outer": (outer, "outer")}


@functools.cache
def kernel() -> Kernel:
    return linear()


def _launched(function: str, tiles: str, first: Tensor, second: Tensor, ends: Tensor) -> Tensor:
    found = getattr(kernel().load(), function)(first, second, ends, config=tiles)
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


def _within(body: Run, first: Tensor, second: Tensor, ends: Tensor) -> Tensor:
    """As it is, for stand-ins too, whose ends may lie behind their rows: torch's grouped product does not look."""
    found: Tensor = body(first, second, ends.clamp(max=len(first)))
    return found


@functools.cache
def side(name: str, dtype: torch.dtype) -> Side:
    """The ways to compute one of the two operators: a list of tiles each."""
    eager, function = BODIES[name]
    tiles = FINE if dtype == torch.float32 else TILES
    ways: dict[str, Run] = {t: partial(_launched, function, t) for t in tiles}
    within = partial(_within, eager)
    return Side(f"{kernel().name}_{kernel().key}", name, ways, within, within)


def chosen(name: str, first: Tensor, second: Tensor, ends: Tensor) -> Tensor:
    """By the kernel where it was verified on this device and measured faster there."""
    here = side(name, first.dtype)
    way = CHOOSER.way(here, (first, second, ends)) if first.dtype == second.dtype and first.dtype in DTYPES else None
    found: Tensor = (way or BODIES[name][0])(first, second, ends)
    return found


linear_op.register_kernel("cuda", partial(chosen, "linear"))
outer_op.register_kernel("cuda", partial(chosen, "outer"))
