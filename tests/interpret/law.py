"""The law of every kernel: its error against float64 is at most twice that of eager torch."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels.lint import complaints
from gatec.kernels.pointwise import render
from gatec.pipeline import prepare
from gatec.regions import Region, regions
from gatec.rewrite import copied
from gatec.tidy import examples

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def in_every_type(name: str, cases: Iterable[Any], told: Callable[[Any], str] = str) -> pytest.MarkDecorator:
    """`name` and `dtype`: each second case in bfloat16 and the first in every type; the others are swept."""
    first, *others = cases
    pairs = [pytest.param(first, d, id=f"{told(first)}-{d}") for d in TYPES]
    for (i, case), dtype in itertools.product(enumerate(others), TYPES):
        marks = () if dtype == torch.bfloat16 and i % 2 else pytest.mark.sweep
        pairs.append(pytest.param(case, dtype, id=f"{told(case)}-{dtype}", marks=marks))
    return pytest.mark.parametrize((name, "dtype"), pairs)


def kernel(fn: Callable[..., Tensor], operands: Sequence[Tensor], name: str = "kernel") -> Kernel:
    derived = derive(fn, operands)
    made = render(name, "tests", derived.forward, derived.backward)
    assert not complaints(made.source)
    return made


def first_region(model: nn.Module, x: Tensor, anchor: str) -> Region:
    program = prepare(model, x)
    graph = copied(program.graph_of(""))
    examples(model, graph)
    return next(r for r in regions(model, graph, program.graph_of) if r.anchor == anchor)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Random values with NaN before and behind them."""
    n = torch.Size(shape).numel()
    memory = torch.full((n + 4096,), float("nan"), dtype=dtype)
    memory[2048 : 2048 + n] = (torch.randn(n) * scale).to(dtype)
    return memory[2048 : 2048 + n].view(shape)


def eager(fn: Callable[..., Tensor], operands: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in operands]
    out = fn(*leaves)
    floats = [x for x in leaves if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, floats, grad.to(out.dtype))]


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30))


def check(fn: Callable[..., Tensor], operands: Sequence[Tensor], made: Kernel | None = None) -> None:
    """The law: error against float64 at most twice eager's, forward and for every gradient."""
    made = made or kernel(fn, operands)
    wide = [x.double() if x.is_floating_point() else x for x in operands]
    out = made.forward(*operands)
    grad = torch.randn(out.shape).to(out.dtype)
    truth, theirs = eager(fn, wide, grad), eager(fn, operands, grad)
    ours = [out, *(g for g in made.backward(grad, *operands) if g is not None)]
    assert len(ours) == len(truth)
    for i, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        floor = torch.finfo(mine.dtype).eps
        assert error(mine, true) <= 2 * max(error(other, true), floor), f"result {i}"
