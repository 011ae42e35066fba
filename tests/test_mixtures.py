"""A mixture of experts is one region from the choice to the sum, and leaves alone what is not quite one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Biased(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 16)


def mixed(model: nn.Module, top_k: int = 2) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    return gatec.convert(model, f"moe(experts=4,top_k={top_k})", inputs=(x,)), x


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_one_op_computes_the_mixture_and_its_gradients(top_k: int) -> None:
    before, x = mixed(Gated(), top_k)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert list(gatec.kernels_of(after)) == [f"model.experts_{top_k}_of_4_glu_silu"]
    for shape in ((2, 5, 8), (1, 8), (3, 1, 7, 8)):
        inputs = torch.randn(shape)
        results = []
        for model in (before, after):
            leaf = inputs.clone().requires_grad_()
            out = model(leaf)
            results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *model.parameters()])])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_biases_inside_keep_the_region_of_the_gate() -> None:
    before, x = mixed(Biased())
    after = gatec.fuse(before, (x,), everywhere=True)
    assert not any("experts" in name for name in gatec.kernels_of(after))
    torch.testing.assert_close(after(x), before(x))
