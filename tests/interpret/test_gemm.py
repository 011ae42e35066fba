"""The laws of GEMM kernels: projections and gate as close to the truth as eager, at ragged shapes, with any operands."""

import pytest
import torch
from gemms import Gated, gates
from law import check, poisoned

from gatec.kernels.lint import complaints

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def operands(gated: Gated, dtype: torch.dtype) -> list[torch.Tensor]:
    depth = gated.shapes[gated.products[0].rows][-1]
    weights = {p.weight for p in gated.products}
    return [poisoned(s, dtype, depth**-0.5 if x in weights else 1.0) for x, s in gated.shapes.items()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", gates(), ids=lambda g: g.name)
def test_kernel_is_as_close_to_the_truth_as_eager(gated: Gated, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = gated.kernel(dtype)
    assert not complaints(made.source), made.source
    check(gated, operands(gated, dtype), made)
