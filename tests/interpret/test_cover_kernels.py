"""The kernels of gates with views, sums and einsum around them obey the law."""

import sys
from pathlib import Path

import pytest
import torch
from law import check, poisoned

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from covers import GATES, Gated

from gatec.kernels.lint import complaints
from gatec.making import made_for
from gatec.pipeline import prepare
from gatec.regions import regions
from gatec.rewrite import copied
from gatec.tidy import examples

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def found(name, dtype):
    torch.manual_seed(0)
    model = Gated(GATES[name]).to(dtype).eval()
    x = torch.randn(2, 7, 8, dtype=dtype)
    program = prepare(model, x)
    graph = copied(program.graph_of(""))
    examples(model, graph)
    return regions(model, graph, program.graph_of, opens=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GATES)
def test_a_kernel_is_as_close_to_the_truth_as_eager(name, dtype):
    (region,) = found(name, dtype)
    kernel = made_for(region).kernel
    assert not complaints(kernel.source)
    operands = [
        poisoned(x.shape, x.dtype) if x.is_floating_point() else torch.rand(x.shape) > 0.5 for x in region.examples
    ]
    check(region.function(), operands, kernel)
