"""The law of the kernels of regions that end in a recurrence: as close to the truth as the region's own nodes."""

import sys
from pathlib import Path

import pytest
import torch
from law import eager, error, first_region, in_every_type, poisoned

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_scan_regions import BODIES, Recurrent

from gatec.kernels.lint import complaints
from gatec.making import made_for

WRITTEN = [b for b in BODIES if "loop" not in b.__name__]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def region_of(body, dtype):
    return first_region(Recurrent(body).to(dtype), torch.randn(2, 5, 6, dtype=dtype), "scan")


@in_every_type("body", WRITTEN, lambda b: b.__name__)
def test_the_kernel_of_a_region_is_as_close_to_the_truth_as_eager(body, dtype):
    torch.manual_seed(0)
    region = region_of(body, dtype)
    made = made_for(region)
    assert not complaints(made.kernel.source)
    made.kernel.load().CHUNK = 8  # as many chunks in fewer steps, which the interpreter takes one by one
    longer = {5: 19, 2: 3}
    shapes = [tuple(longer.get(n, n) for n in v.shape) for v in region.examples]
    operands = [poisoned(s, dtype, 0.5).abs() for s in shapes]
    states = made.kernel.forward(*operands)
    grad = poisoned(tuple(states.shape), dtype)
    truth, theirs = (eager(region.function(), [x.to(d) for x in operands], grad) for d in (torch.float64, dtype))
    ours = [states, *made.kernel.load().backward(grad, *operands, kept=states)]
    pulled = [states, *made.pull(grad, states, *operands, needs=[True] * len(operands))]
    for i, (mine, library, other, true) in enumerate(zip(ours, pulled, theirs, truth, strict=True)):
        assert mine.shape == other.shape == library.shape and mine.dtype == other.dtype == library.dtype
        bound = 2 * max(error(other, true), torch.finfo(dtype).eps)
        assert error(mine, true) <= bound, f"result {i}"
        assert error(library, true) <= 2 * bound, f"result {i} of the eager gradient"


def test_only_what_is_needed():
    region = region_of(WRITTEN[2], torch.float32)
    operands = [torch.rand(v.shape) for v in region.examples]
    module = made_for(region).kernel.load()
    module.CHUNK = 8
    out = module.forward(*operands)
    whole = module.backward(torch.ones_like(out), *operands, kept=out)
    for i in range(len(operands)):
        needs = tuple(j == i for j in range(len(operands)))
        found = module.backward(torch.ones_like(out), *operands, needs=needs)
        assert [g is not None for g in found] == list(needs) and torch.equal(found[i], whole[i])


def test_no_steps():
    region = region_of(WRITTEN[2], torch.float32)
    shapes = [tuple(0 if n == 5 else n for n in v.shape) for v in region.examples]
    made, operands = made_for(region), [torch.rand(s) for s in shapes]
    out = made.kernel.forward(*operands)
    grads = made.kernel.load().backward(out, *operands, kept=out)
    assert out.shape == (2, 0, 6) and [g.shape for g in grads] == [x.shape for x in operands]
    assert not any(g.any() for g in grads)
