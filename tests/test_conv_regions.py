"""Regions with a depthwise convolution in front of a gate: found, put as ops, exact at every length, refused where they must be."""

import pytest
import torch
from convolutions import CASES, SEQUENCE, WIDTH, Convolved, causal, model_of
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.verify import distance


def convolutions(model):
    return [k for k in gatec.kernels_of(model).values() if "gatec/kernels/conv.py" in k.source]


def step(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *model.parameters()], out.cos(), allow_unused=True)]


@pytest.mark.parametrize("name", CASES)
def test_the_gate_is_part_of_the_convolution(name):
    model, x = model_of(name)
    model, x = model.double(), x.double()
    fused = gatec.fuse(model, x, everywhere=True)
    (kernel,) = convolutions(fused)
    longer = torch.randn(3, *(n if n == WIDTH else n + 4 for n in x.shape[1:]), dtype=x.dtype)
    for given in (x, longer):
        for mine, theirs in zip(step(fused, given), step(model, given), strict=True):
            assert (mine is None) == (theirs is None) and (mine is None or distance(mine, theirs) < 1e-12)
    called = [
        str(n.target)
        for u in [gatec.capture.unit_of(fused)]
        for c in u.graphs.values()
        for g in c
        for n in g.graph.nodes
    ]
    assert any(t.startswith(f"gatec.{kernel.name}_") for t in called) and not any("conv1d" in t for t in called)


def test_work_in_front_of_the_taps_is_computed_there():
    model, x = model_of("activated")
    (kernel,) = convolutions(gatec.fuse(model, x, everywhere=True))
    assert all(f"tl.sigmoid(value_beside_{k})" in kernel.source for k in range(2))  # once for each tap


REFUSED = {
    "several channels": nn.Conv1d(WIDTH, WIDTH, 4, padding=3),
    "a step of two": nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH, stride=2),
    "many taps": nn.Conv1d(WIDTH, WIDTH, 31, padding=30, groups=WIDTH),
    "other borders": nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH, padding_mode="replicate"),
    "a shorter result": nn.Conv1d(WIDTH, WIDTH, 4, padding=1, groups=WIDTH),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_convolutions_stay_outside(why):
    def gated(m, x):
        y = m.conv(x.mT)[..., : x.shape[1]].mT
        return F.silu(y) * torch.sigmoid(m.gate(x)[:, : y.shape[1]])

    torch.manual_seed(0)
    model, x = Convolved(gated, REFUSED[why]), torch.randn(SEQUENCE)
    fused = gatec.fuse(model, x, everywhere=True)
    assert not convolutions(fused) and distance(fused(x), model(x)) < 1e-6


def test_a_cut_that_is_no_longer_the_length_is_another_graph():
    """A graph holds only where what the convolution makes too much is cut off."""

    def until(m, x):
        return torch.sigmoid(m.conv(x.mT)[..., : m.length]) * m.value(x)[:, : m.length].mT

    model = Convolved(until, nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH))
    model.length = 9
    fused = gatec.fuse(model, torch.randn(SEQUENCE), everywhere=True)
    for steps in (9, 12):
        x = torch.randn(2, steps, WIDTH)
        assert distance(fused(x), model(x)) < 1e-6


def test_a_hook_or_other_settings_bring_the_layer_back():
    model, x = model_of("causal")
    fused = gatec.fuse(model, x, everywhere=True)
    for some in (fused, model):
        some.conv.padding = (6,)
    assert distance(fused(x), model(x)) < 1e-6
    seen = []
    fused.conv.register_forward_hook(lambda *_: seen.append(1))
    assert distance(fused(x), model(x)) < 1e-6 and seen == [1]


def test_a_result_that_is_read_twice_stays_outside():
    def twice(m, x):
        y = m.conv(x.mT)[..., : x.shape[1]].mT
        return torch.sigmoid(y) * m.value(x) + y.sum(1, keepdim=True)

    model = Convolved(twice, CASES["causal"][1]())
    assert not convolutions(gatec.fuse(model, torch.randn(SEQUENCE), everywhere=True))
    assert causal.__name__ in CASES
