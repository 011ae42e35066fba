"""Fusing changes nothing but speed: same values, same gradients, same file names, readable sources."""

import copy
import re

import pytest
import torch
from test_recognise import GATES, Block, X
from torch import nn

import gatec
from gatec.capture import Call, trace
from gatec.lower import op_for
from gatec.making import made_for
from gatec.regions import regions
from gatec.verify import distance

ONE_OPERATION = ("F.glu",)  # one launch already: nothing to fuse
POINTWISE = [name for name in GATES if name not in (*ONE_OPERATION, "hard")]


@pytest.mark.parametrize("name", POINTWISE)
def test_fused_is_the_same_function_forward_and_backward(name):
    model = Block(GATES[name][0])
    fused = gatec.fuse(model, X, everywhere=True)
    assert any(e.verdict == "put" for e in gatec.report(fused).edits), gatec.report(fused)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    model(x).square().sum().backward()
    fused(y).square().sum().backward()
    assert distance(y.grad, x.grad) < 1e-5
    for (n, p), (_, q) in zip(model.named_parameters(), fused.named_parameters(), strict=True):
        if p.grad is not None:
            assert distance(q.grad, p.grad) < 1e-5, n


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fused_follows_the_dtype(dtype):
    model = Block(GATES["swiglu"][0])
    fused = gatec.fuse(model, X, everywhere=True).to(dtype)
    assert distance(fused(X.to(dtype)), copy.deepcopy(model).to(dtype)(X.to(dtype))) <= 2 * torch.finfo(dtype).eps


def test_on_a_cpu_the_modules_are_left_alone_and_kernels_are_generated():
    model = Block(GATES["swiglu"][0])
    fused = gatec.fuse(model, X)
    assert type(fused) is Block
    assert "on a CPU the region runs as its own graph" in gatec.report(fused).edits[0].why
    assert list(gatec.kernels_of(fused)) == ["model.glu_silu"]


def test_a_kernel_runs_by_itself_and_names_its_origin():
    kernel = gatec.kernels_of(gatec.fuse(Block(GATES["highway"][0]), X))["model.highway_sigmoid"]
    assert "gatec" not in "".join(line for line in kernel.source.splitlines() if "import" in line)
    assert "test_recognise.py" in kernel.source.splitlines()[0]


def test_fusing_twice_is_fusing_once():
    fused = gatec.fuse(Block(GATES["swiglu"][0]), X, everywhere=True)
    again = gatec.fuse(fused, X, everywhere=True)
    assert not any(e.verdict == "put" for e in gatec.report(again).edits)
    assert torch.equal(again(X), fused(X))


def test_a_fused_module_falls_back_where_its_call_cannot_be_captured():
    class Asks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x, strict=False):
            if strict and bool(x.sum() > 1e9):
                return x
            return torch.sigmoid(self.a(x)) * self.b(x)

    model = Asks()
    fused = gatec.fuse(model, X, everywhere=True)
    assert torch.equal(fused(X, strict=True), model(X, strict=True))
    assert vars(fused)["_gatec"].fallbacks == 1


def test_torch_compile_sees_through_a_fused_model():
    model = Block(GATES["swiglu"][0]).eval()
    fused = gatec.fuse(model, X, everywhere=True)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert distance(compiled(X), model(X)) < 1e-6


def test_onnx_sees_no_op_of_ours(tmp_path):
    fused = gatec.fuse(Block(GATES["swiglu"][0]).eval(), X, everywhere=True)
    assert "Sigmoid" in str(gatec.export(fused, tmp_path / "m.onnx", X))


class Overwrites(torch.nn.Module):
    """Writes to what a gate was computed from, before the gate is used."""

    def __init__(self, how) -> None:
        super().__init__()
        self.a, self.b, self.how = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), how
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        gate = torch.sigmoid(2 * h)
        h = self.how(self, h)
        return gate * self.b(h)


def added(m, h):
    h += 1
    return h


def filled(m, h):
    h[..., 0] = 3
    return h


@pytest.mark.parametrize("how", [added, filled, lambda m, h: m.relu(h), lambda m, h: h.view(-1).mul_(2).view(h.shape)])
def test_nothing_moves_past_a_write(how):
    model = Overwrites(how)
    fused = gatec.fuse(model, X, everywhere=True)
    with torch.no_grad():
        assert torch.equal(fused(X), model(X)), gatec.report(fused)


def test_a_region_whose_dtypes_come_from_outside_is_refused():
    region = a_region(torch.float32)
    assert made_for(region).kernel.name == "glu_silu"
    region.nodes[0].meta["val"] = torch.empty(2, 3, 8, dtype=torch.bfloat16)
    with pytest.raises(gatec.GatecError) as error:
        made_for(region)
    assert str(error.value).startswith(
        "gatec: a region that computes the same dtypes without autocast\n"
        "  found torch.bfloat16 for torch.float32 of a_1\n"
    )


def a_region(dtype, gate=GATES["swiglu"][0]):
    model = Block(gate).to(dtype)
    graph = trace(model, Block.forward, Call((X.to(dtype),), {})).graph
    (region,) = regions(model, graph, lambda path: None)
    return region


def test_a_result_has_one_layout_on_every_device():
    made = made_for(region := a_region(torch.float32, GATES["packed"][0]))
    op = op_for(made, region)
    for x in (torch.randn(3, 2, 8).transpose(0, 1), torch.randn(2, 3, 16)[..., ::2], torch.randn(2, 8, 3).mT):
        out = op(x, torch.randn(2, 3, 8))
        assert out.stride() == op(x.to("meta"), torch.randn(2, 3, 8, device="meta")).stride()
        assert out.stride() == torch.empty_like(x).stride()
    torch.library.opcheck(op, (torch.randn(2, 3, 8).requires_grad_(), torch.randn(3, 8).requires_grad_()))


def test_a_fused_form_that_moves_the_output_is_not_installed(monkeypatch):
    monkeypatch.setattr(gatec.lower, "op_for", lambda made, region: torch.sub)
    model = Block(GATES["swiglu"][0])
    fused = gatec.fuse(model, X, everywhere=True)
    (edit,) = gatec.report(fused).edits
    assert edit.verdict == "left" and re.fullmatch(r"fused, its output would move by \d.\de[+-]\d\d", edit.why)
    assert type(fused) is Block and torch.equal(fused(X), model(X))


def test_a_region_may_read_what_another_region_computes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.mask = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.zeros(8))

        def forward(self, x):
            gate = torch.sigmoid(3 * self.mask)
            x = x + self.a(x) * gate
            return x + self.b(x) * gate + x * torch.sigmoid(self.a(x)) * 2

    model, x = Twice(), torch.randn(3, 8)
    fused = gatec.fuse(model, x, everywhere=True)
    assert len(gatec.kernels_of(fused)) >= 2
    assert torch.allclose(model(x), fused(x))


def test_operands_that_are_called_like_functions_of_python_are_told_apart():
    """fx would rename `sum` to `sum_1`, which is what another operand is called."""

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            gate, value, other = self.a(x).sum(1), self.b(x).sum(1), self.c(x).sum(1)
            gate = torch.sigmoid(gate)
            return gate * value + (1 - gate) * other

    model, x = Summed(), torch.randn(2, 3, 8)
    fused = gatec.fuse(model, x, everywhere=True)
    assert any(e.verdict == "put" for e in gatec.report(fused).edits), gatec.report(fused)
    assert torch.equal(fused(x), model(x))


def test_a_move_to_a_device_by_its_name_stays_outside_of_a_region():
    model = Block(lambda s, x: torch.sigmoid(2 * s.a(x).to("cpu", torch.float32)).to("cpu") * s.b(x))
    fused = gatec.fuse(model, X, everywhere=True)
    assert gatec.kernels_of(fused) and distance(fused(X), model(X)) < 1e-6
