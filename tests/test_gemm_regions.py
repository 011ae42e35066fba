"""Linear layers in front of a gate join its region: the same function and gradients, with nothing hidden from its user."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.gemms import packed_weights, split
from gatec.making import made_for
from gatec.pipeline import prepare
from gatec.regions import regions
from gatec.rewrite import copied
from gatec.tidy import examples
from gatec.verify import distance

transformers = pytest.importorskip("transformers")


class Layers(nn.Module):
    """A few layers around one expression."""

    def __init__(self, expression, bias=False):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16, bias=bias), nn.Linear(16, 16, bias=bias)
        self.out, self.expression = nn.Linear(16, 16), expression

    def forward(self, x):
        return self.expression(self, x)


def swiglu(m, x):
    return m.out(F.silu(m.a(x)) * m.b(x))


def geglu(m, x):
    return m.out(F.gelu(m.a(x)) * m.b(x))


def highway(m, x):
    return torch.lerp(x, m.b(x), torch.sigmoid(m.a(x)))


def attention(m, x):
    return m.out(F.scaled_dot_product_attention(x, x, x) * torch.sigmoid(m.a(x)))


def summed(m, x):
    gate = torch.sigmoid(m.a(x) + m.b(x.cos()))
    return gate * x + (1 - gate) * x.cumsum(-1)


def llama():
    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)
    return transformers.models.llama.modeling_llama.LlamaMLP(config)


MODELS = {
    "swiglu": (lambda: Layers(swiglu), 2),
    "geglu with biases": (lambda: Layers(geglu, bias=True), 2),
    "highway of two projections": (lambda: Layers(highway, bias=True), 2),
    "attention gate": (lambda: Layers(attention), 1),
    "one gate of two inputs": (lambda: Layers(summed, bias=True), 2),
    "a Llama MLP": (llama, 2),
}
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def region_of(model):
    program = prepare(model, X)
    graph = copied(program.graph_of(""))
    examples(model, graph)
    (region,) = regions(model, graph, program.graph_of)
    return region


@pytest.mark.parametrize("name", MODELS)
def test_fused_is_the_same_function_forward_and_backward(name):
    build, products = MODELS[name]
    model = build()
    fused = gatec.fuse(model, X, everywhere=True)
    (kernel,) = gatec.kernels_of(fused).values()
    assert "gemm.py" in kernel.source and len(split(region_of(model))[0]) == products
    for shape in [(2, 5, 16), (3, 16), (1, 0, 16)]:
        x = torch.randn(shape, requires_grad=True)
        for mine, theirs in zip(results(fused, x), results(model, x), strict=True):
            assert mine.shape == theirs.shape and (not theirs.numel() or distance(mine, theirs) < 1e-5)


def results(model, x):
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()], materialize_grads=True)]


def test_a_sum_of_two_products_has_one_accumulator():
    products, epilogue = split(region_of(Layers(summed)))
    assert len({total for total, _ in products}) == 1 and len(epilogue.inputs) == 3


def test_what_backward_keeps_is_inputs_and_projections():
    model, kept = Layers(swiglu), []
    fused = gatec.fuse(model, X, everywhere=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused(X.clone().requires_grad_())
    parameters = {p.data_ptr() for p in fused.parameters()}
    sizes = sorted(t.numel() for t in kept if t.data_ptr() not in parameters)
    assert sizes == [X.numel(), X.numel(), 2 * X.numel()]  # rows of both layers, and the projections side by side


def test_frozen_weights_get_no_gradient():
    fused = gatec.fuse(Layers(swiglu), X, everywhere=True)
    fused.a.weight.requires_grad_(False)
    fused(X).sum().backward()
    assert fused.a.weight.grad is None and fused.b.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    model = Layers(swiglu)
    fused = gatec.fuse(model, X, everywhere=True).to(dtype)
    assert distance(fused(X.to(dtype)), copy.deepcopy(model).to(dtype)(X.to(dtype))) <= 2 * torch.finfo(dtype).eps
    anchor = region_of(model).anchor
    assert anchor == "gemm"


class Traced(torch.Tensor):
    """A tensor with operators of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Traced(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        plain = [a.inner * 2 if isinstance(a, Traced) else a for a in args]
        return function(*plain, **(kwargs or {}))


def hooked(model):
    model.a.register_forward_hook(lambda module, args, out: out + 1)


def replaced(model):
    model.a = nn.Sequential(nn.Linear(16, 16), nn.Tanh())


def patched(model):
    model.a.forward = lambda x: x * 3


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.a)


def moved(model):
    model.a.weight.data = model.a.weight.data * 2


def written(model):
    model.a.weight.data += 1


def optimised(model):
    model(X).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


CHANGES = [hooked, replaced, patched, parametrized, moved, written, optimised]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_behind_its_back_is_seen(change):
    model = Layers(swiglu)
    fused = gatec.fuse(model, X, everywhere=True)
    fused(X)
    torch.manual_seed(1)
    change(fused)
    torch.manual_seed(1)
    change(model)
    assert distance(fused(X), model(X)) < 1e-6


@pytest.mark.parametrize("change", [hooked, patched, parametrized], ids=lambda f: f.__name__)
def test_layers_that_are_more_than_linear_stay_outside(change):
    model = Layers(swiglu)
    change(model)
    products, _ = split(region_of(model))
    assert len(products) == 1
    assert distance(gatec.fuse_(model, X, everywhere=True)(X), model(X)) < 1e-6


def test_weights_with_operators_of_their_own_stay_outside():
    model = Layers(swiglu)
    model.a.weight = nn.Parameter(Traced(torch.randn(16, 16)), requires_grad=False)
    assert len(split(region_of(model))[0]) == 1


def test_layers_that_are_called_twice_stay_outside():
    region = region_of(Layers(lambda m, x: m.out(F.silu(m.a(x)) * m.a(x.sin()))))
    assert region.anchor == "pointwise"


def test_projections_that_are_read_elsewhere_stay_outside():
    region = region_of(Layers(lambda m, x: (lambda y: m.out(F.silu(m.b(x)) * y) + y.mean())(m.a(x))))
    assert len(split(region)[0]) == 1


def test_packed_weights_are_the_parameters_themselves():
    model = Layers(swiglu)
    before = copy.deepcopy(model.state_dict())
    packed_weights(model, region := region_of(model), made_for(region))
    together = model.a.weight.as_strided((32, 16), (16, 1))
    assert torch.equal(together, torch.cat([model.a.weight, model.b.weight]))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with torch.no_grad():
        model.b.weight.fill_(3)
    assert (together[16:] == 3).all()


def test_weights_that_share_memory_with_others_are_not_moved():
    model, whole = Layers(swiglu), torch.randn(16, 32)
    model.a.weight = nn.Parameter(whole[:, :16])
    at = model.a.weight.data_ptr()
    packed_weights(model, region := region_of(model), made_for(region))
    assert model.a.weight.data_ptr() == at


def test_onnx_sees_products_and_no_op_of_ours(tmp_path):
    fused = gatec.fuse(Layers(geglu, bias=True).eval(), X, everywhere=True)
    assert gatec.export(fused, tmp_path / "m.onnx", inputs=X).parity


def test_torch_compile_and_autocast():
    model = Layers(swiglu)
    fused = gatec.fuse(model, X, everywhere=True)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = X.clone().requires_grad_()
    for mine, theirs in zip(results(compiled, x), results(model, x), strict=True):
        assert distance(mine, theirs) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(X), model(X))
