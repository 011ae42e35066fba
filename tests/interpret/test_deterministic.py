"""Kernels give the same bits whatever order their programs run in, and whatever memory held before them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import triton
from equations import ROWS, residual
from gemms import gates
from law import kernel, poisoned
from recurrences import RECURRENCES
from sampled import some
from test_grouped_kernel import drawn, flat, swiglu
from test_grouped_kernel import kernel as experts
from test_router import router, softmax
from test_rowwise import kernel as of_rows
from torch import Tensor
from triton.runtime import interpreter

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BUILDER = type(interpreter.interpreter_builder)
LAUNCHES: list[int] = []  # how many programs each launch had


@contextmanager
def other_order() -> Iterator[None]:
    """The last program of every launch runs first, and fresh memory is full of NaN."""
    forward = BUILDER.set_grid_idx

    def backward(self, x, y, z):
        if (x, y, z) == (0, 0, 0):
            LAUNCHES.append(self.grid_dim[0] * self.grid_dim[1] * self.grid_dim[2])
        forward(self, *(n - 1 - i for n, i in zip(self.grid_dim, (x, y, z), strict=True)))

    filled = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BUILDER, "set_grid_idx", backward)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = filled


def both(made, operands: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Forward and backward of a kernel on these operands."""

    def run() -> list[Tensor]:
        out = made.forward(*operands)
        grad = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        return [out, *(g for g in made.backward(grad, *operands) if g is not None)]

    return run


def pointwise() -> Callable[[], list[Tensor]]:
    operands = [
        poisoned((5, 1031), torch.bfloat16),
        poisoned((5, 1031), torch.bfloat16),
        poisoned((1031,), torch.bfloat16),
    ]
    return both(kernel(residual, operands), operands)


def rows() -> Callable[[], list[Tensor]]:
    region = next(r for r in ROWS if r.name == "affine_norm")
    operands = [poisoned(s, torch.bfloat16) for s in region.shapes]
    return both(of_rows(region.fn, operands), operands)


def product() -> Callable[[], list[Tensor]]:
    gated = next(g for g in gates(131, 67, 149) if g.name == "geglu")
    return both(gated.kernel(torch.bfloat16), [poisoned(s, torch.bfloat16) for s in gated.shapes.values()])


def mixture() -> Callable[[], list[Tensor]]:
    return both(experts(swiglu, torch.bfloat16), flat(*drawn(torch.bfloat16, tokens=131)))


def routed() -> Callable[[], list[Tensor]]:
    return both(router(softmax, 23, 5), [poisoned((131, 23), torch.float32)])


def scan() -> Callable[[], list[Tensor]]:
    recurrence = next(r for r in RECURRENCES if r.name == "average")
    operands = recurrence.operands(lambda s: poisoned(s, torch.bfloat16, 0.5), 67)
    module, given = recurrence.kernel(operands).load(), [operands[i] for i in recurrence.order()]

    def run() -> list[Tensor]:
        out = module.forward(*given)
        grads, _ = module.backward(out, out, *given)
        return [out, *(g for g in grads if g is not None)]

    return run


@pytest.mark.parametrize("anchor", some([pointwise, rows, product, mixture, routed, scan], of=2, at=1))
def test_the_order_of_programs_and_old_memory_change_nothing(anchor) -> None:
    torch.manual_seed(0)
    run = anchor()
    wanted = run()
    LAUNCHES.clear()
    with other_order():
        found = run()
    assert max(LAUNCHES) > 1
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@triton.jit
def last_one_wins(out_ptr, x_ptr):
    at = triton.language.program_id(0).to(triton.language.int64)
    triton.language.store(out_ptr, at.to(triton.language.float32), mask=at >= 0)


def test_a_race_is_seen() -> None:
    def run() -> Tensor:
        out = torch.empty(2)
        last_one_wins[(3,)](out, out)
        return out

    with other_order():
        assert run()[0] == 0 and run()[1].isnan()
    assert run()[0] == 2
