"""The law of convolution kernels: result and every gradient as close to the truth as the region's own nodes."""

import sys
from pathlib import Path

import pytest
import torch
from law import eager, error, first_region, in_every_type, poisoned

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convolutions import CASES, model_of

from gatec.kernels.lint import complaints
from gatec.making import made_for

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def region_of(name, dtype):
    model, x = model_of(name)
    return first_region(model.to(dtype), x.to(dtype), "conv")


@in_every_type("name", CASES)
def test_kernel_is_as_close_to_the_truth_as_eager(name, dtype):
    torch.manual_seed(0)
    region = region_of(name, dtype)
    made = made_for(region)
    assert not complaints(made.kernel.source)
    longer = {9: 31, 7: 13, 5: 11, 2: 3}
    weights = {id(v) for v in region.examples if v.dim() > 2 and v.shape[1] == 1}
    shapes = [tuple(v.shape) if id(v) in weights else tuple(longer.get(n, n) for n in v.shape) for v in region.examples]
    operands = [poisoned(s, dtype) for s in shapes]
    out = made.kernel.forward(*operands)
    grad = poisoned(tuple(out.shape), dtype)
    truth, theirs = (eager(region.function(), [x.to(d) for x in operands], grad) for d in (torch.float64, dtype))
    ours = [out, *made.kernel.backward(grad, *operands)]
    library = [out, *made.pull(grad, *operands)]
    for i, (mine, pulled, other, true) in enumerate(zip(ours, library, theirs, truth, strict=True)):
        assert mine.shape == other.shape == pulled.shape and mine.dtype == other.dtype == pulled.dtype
        bound = 2 * max(error(other, true), torch.finfo(dtype).eps)
        assert error(mine, true) <= bound, f"result {i}"
        assert error(pulled, true) <= 2 * bound, f"result {i} of the library's gradient"
