"""The kernel of a region that was found in a model is the region: forward, and every gradient."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_recognise import GATES, Block, X

from gatec.making import made_for
from gatec.pipeline import prepare
from gatec.regions import regions
from gatec.rewrite import copied
from gatec.tidy import examples
from gatec.verify import distance

FUSED = [name for name in GATES if name not in ("F.glu", "hard")]


def found(name):
    model = Block(GATES[name][0]).eval()
    program = prepare(model, X)
    graph = copied(program.graph_of(""))
    examples(model, graph)
    return regions(model, graph, lambda path: program.graph_of(path))


@pytest.mark.parametrize("name", FUSED)
def test_the_kernel_of_a_region_is_the_region(name):
    (region,) = found(name)
    kernel = made_for(region).kernel
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(x.shape, generator=generator).requires_grad_() for x in region.examples]
    wanted = region.function()(*operands)
    assert distance(kernel.forward(*(x.detach() for x in operands)), wanted) < 1e-6
    grad = torch.randn(wanted.shape, generator=generator)
    gradients = kernel.backward(grad, *(x.detach() for x in operands))
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, operands, grad), strict=True):
        assert distance(mine, theirs) < 1e-5
