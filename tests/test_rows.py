"""Norms and statistics beside a gate join its region: written out, as a module of torch's, or as somebody's own module."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Gated(nn.Module):
    """A value, normed, times a gate."""

    def __init__(self, norm, width=16):
        super().__init__()
        self.value, self.gate, self.out, self.norm = *(nn.Linear(width, width) for _ in range(3)), norm

    def forward(self, x):
        return self.out(self.norm(self.value(x)) * F.silu(self.gate(x)))


class Adaptive(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.condition = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 32)

    def forward(self, x):
        shift, scale = self.condition(x.mean(1)).chunk(2, -1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class Weighed(nn.Module):
    """A gate per position from the softmax of its features."""

    def __init__(self):
        super().__init__()
        self.scores, self.value = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return torch.sigmoid(F.softmax(self.scores(x), -1)) * self.value(x)


CASES = {
    "written out, a module of its own": lambda: Gated(RMSNorm(16)),
    "nn.RMSNorm": lambda: Gated(nn.RMSNorm(16)),
    "nn.LayerNorm": lambda: Gated(nn.LayerNorm(16)),
    "adaptive": Adaptive,
    "softmax": Weighed,
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_rows_join_the_region_and_gradients_are_as_before(build):
    model = build()
    fused = gatec.fuse(model, torch.randn(2, 3, 16), everywhere=True)
    assert ["rowwise.py" in k.source for k in gatec.kernels_of(fused).values()] == [True]
    for shape in [(2, 3, 16), (4, 7, 16)]:
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        for mine, theirs in zip(*(_results(m, x, grad) for m in (model, fused)), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def _results(model, x, grad):
    out = model(x)
    return [out, *torch.autograd.grad(out, [x, *model.parameters()], grad)]


def test_half_precision_rounds_where_the_author_cast():
    model = Gated(RMSNorm(16)).bfloat16()
    x = torch.randn(2, 3, 16, dtype=torch.bfloat16)
    fused = gatec.fuse(model, x, everywhere=True)
    assert torch.equal(model(x), fused(x))


def test_a_row_that_fits_no_program_stays_outside_of_the_region():
    model = Gated(nn.LayerNorm(8192), 8192)
    fused = gatec.fuse(model, torch.randn(1, 8192), everywhere=True)
    assert ["gemm.py" in k.source for k in gatec.kernels_of(fused).values()] == [True]


def test_a_mean_over_positions_is_not_of_rows():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(16, 16)

        def forward(self, x):
            return x * torch.sigmoid(self.gate(x).mean(1, keepdim=True))

    fused = gatec.fuse(Pooled(), torch.randn(2, 3, 16), everywhere=True)
    assert not any("rowwise.py" in k.source for k in gatec.kernels_of(fused).values())


def test_onnx_of_a_fused_norm(tmp_path):
    fused = gatec.fuse(Gated(nn.RMSNorm(16)), torch.randn(2, 3, 16), everywhere=True)
    assert gatec.export(fused, tmp_path / "m.onnx", inputs=torch.randn(2, 3, 16)).parity


class Switch(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.randn(16))

    def forward(self, x):
        return x * torch.sigmoid(self.logit)


class Switched(nn.Module):
    """A gate that is a module of its own, on a branch."""

    def __init__(self):
        super().__init__()
        self.branch, self.switch = nn.Linear(16, 16), Switch()

    def forward(self, x):
        return x + self.switch(self.branch(x))


def test_a_gate_that_is_a_module_joins_the_region_around_it_unless_somebody_listens_to_it():
    x, heard = torch.randn(2, 3, 16), []
    model = Switched()
    fused = gatec.fuse(model, x, everywhere=True)
    assert len(gatec.kernels_of(fused)) == 1 and torch.allclose(model(x), fused(x))
    model.switch.register_forward_hook(lambda *args: heard.append(1))
    gatec.fuse(model, x, everywhere=True)(x)
    assert heard
