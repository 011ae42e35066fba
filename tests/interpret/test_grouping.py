"""Each way of the grouped operators goes through the verification that it meets on a device."""

import pickle

import pytest
import torch
from sampled import swept
from torch import nn
from torch.nn import functional as F

import gatec
from gatec import lower
from gatec.capture import Call, trace
from gatec.dispatch.forms import Form
from gatec.dispatch.verify import Trial, verified
from gatec.grouping import chosen, side
from gatec.making import made_for
from gatec.mixtures import mixtures
from gatec.regions import gates

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["linear", "outer"])
def test_every_way_passes_the_verification_of_a_device(name: str, dtype: torch.dtype) -> None:
    ends = torch.tensor([11, 11, 40])
    x, second = torch.randn(40, 24).to(dtype), torch.randn(*((3, 16, 24) if name == "linear" else (40, 16))).to(dtype)
    here = side(name, dtype)
    assert here.ways
    for way in here.ways.values():
        forms = tuple(map(Form.of, (x, second, ends)))
        verified(pickle.loads(pickle.dumps(Trial(way, here.eager, here.exact, forms, "cpu"))))


def test_a_wrong_way_does_not_pass() -> None:
    forms = tuple(map(Form.of, (torch.randn(40, 24), torch.randn(3, 16, 24), torch.tensor([11, 11, 40]))))
    here = side("linear", torch.float32)
    with pytest.raises(Exception, match="result 0"):
        verified(Trial(lambda *xs: here.eager(*xs) * 1.01, here.eager, here.exact, forms, "cpu"))


@pytest.mark.parametrize("name", ["linear", "outer"])
def test_cuda_goes_through_the_choice(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gatec::grouped_{name}", "CUDA")
    other = (
        torch.randn(3, 16, 24, dtype=torch.float64) if name == "linear" else torch.randn(40, 16, dtype=torch.float64)
    )
    x, ends = torch.randn(40, 24, dtype=torch.float64), torch.tensor([11, 11, 40])
    # Types that no kernel takes run as they are.
    assert torch.equal(chosen(name, x, other, ends), side(name, x.dtype).eager(x, other, ends))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(24, 32, bias=False), nn.Linear(24, 32, bias=False)
        self.down = nn.Linear(32, 24, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_the_kernel_of_a_converted_model_computes_its_mixture() -> None:
    torch.manual_seed(0)
    x = torch.randn(13, 24)
    model = gatec.convert(Gated(), "moe(experts=4,top_k=2)", inputs=(x,))
    kernel = gatec.kernels_of(gatec.fuse(model, (x,), everywhere=True))["model.experts_2_of_4_glu_silu"]
    chosen, scale = model.router(x)
    firsts = [w.weight.unflatten(0, (4, -1)) for w in (model.gate, model.up)]
    down = model.down.weight.unflatten(1, (4, -1)).permute(1, 0, 2)
    operands = [t.detach() for t in (x, chosen, torch.ones_like(scale), *firsts, down)]
    torch.testing.assert_close(kernel.forward(*operands), model(x))
    kernel.load()
    grad = torch.randn(13, 24)
    (gate,) = torch.autograd.grad(model(x), model.gate.weight, grad)
    torch.testing.assert_close(kernel.backward(grad, *operands)[3].flatten(0, 1), gate)


class Looked(nn.Module):
    """Experts with biases, their first matrices interleaved in one."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(24, 3)
        self.first, self.bias = nn.Parameter(torch.randn(3, 24, 32) / 5), nn.Parameter(torch.randn(3, 32))
        self.down, self.down_bias = nn.Parameter(torch.randn(3, 16, 24) / 4), nn.Parameter(torch.randn(3, 24))

    def forward(self, x):
        scale, chosen = self.router(x).softmax(-1).topk(2)
        which, rows = chosen.flatten(), x.repeat_interleave(2, 0)
        h = torch.bmm(rows.unsqueeze(1), self.first[which]).squeeze(1) + self.bias[which]
        h = h[..., ::2].clamp(max=7.0).sigmoid() * (h[..., 1::2] + 1)
        out = torch.bmm(h.unsqueeze(1), self.down[which]).squeeze(1) + self.down_bias[which]
        return (out * scale.flatten().unsqueeze(-1)).unflatten(0, (-1, 2)).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, swept(torch.bfloat16)], ids=str)
def test_every_way_of_a_mixture_passes_the_verification_of_a_device(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Looked().to(dtype)
    graph = trace(model, Looked.forward, Call((torch.randn(11, 24).to(dtype),), {})).graph
    (region,) = mixtures(gates(model, graph, lambda path: None), graph, model)
    values = [torch.randn(v.shape).to(dtype) for v in region.examples]
    values[1] = torch.stack([torch.randperm(3)[:2] for _ in range(11)])
    sides = lower.sides(made_for(region), region.function())
    assert [s.name for s in sides] == ["forward", "keeping", "backward"]
    for here in sides:
        forms = tuple(map(Form.of, here.operands(values)))
        assert here.ways
        for way in list(here.ways.values())[-2:]:
            verified(pickle.loads(pickle.dumps(Trial(way, here.eager, here.exact, forms, "cpu"))))
