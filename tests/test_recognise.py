"""The census finds every gate by what it computes, and none where there is only something that looks like one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatec
from gatec.catalog import gates
from gatec.moe import ROUTERS
from gatec.program import Program
from gatec.recognise import finds


class Block(nn.Module):
    """A small module around one expression of x and a few layers."""

    def __init__(self, expression) -> None:
        super().__init__()
        self.a, self.b, self.out, self.wide = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.scale, self.norm, self.square = nn.Parameter(torch.ones(8)), nn.LayerNorm(8), nn.Linear(1, 1)
        self.expression = expression

    def forward(self, x: Tensor) -> Tensor:
        return self.expression(self, x)


def highway(m, x):
    g = torch.sigmoid(m.a(x))
    return g * m.b(x) + (1 - g) * x


def lerped(m, x):
    return torch.lerp(x, m.b(x), torch.sigmoid(m.a(x)))


def difference(m, x):
    return x + torch.sigmoid(m.a(x)) * (m.b(x) - x)


def attention(m, x):
    return F.scaled_dot_product_attention(x, m.b(x), x)


def squeeze_excite(m, x):
    image = x.unsqueeze(-1).expand(-1, -1, -1, 4).transpose(1, 2)
    gate = torch.sigmoid(m.a(image.mean((2, 3)))[:, :, None, None])
    return image * gate


def rotated(m, x):
    angle = x.new_ones(8)
    turned = torch.cat((-x[..., 4:], x[..., :4]), -1)
    return x * angle.cos() + turned * angle.sin()


def rms_norm(m, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale


def attention_weights(m, x):
    weights = torch.softmax(m.a(x) @ m.b(x).transpose(-1, -2), -1)
    return weights @ x


def pooled_attention(m, x):
    weights = torch.softmax((m.a(x) * m.b(x[:, :1])).sum(-1, keepdim=True), 1)
    return (weights @ torch.ones(1, 8)).sum() + x


GATES = {
    "swiglu": (lambda m, x: m.out(F.silu(m.a(x)) * m.b(x)), "glu"),
    "reversed": (lambda m, x: m.out(m.b(x) * F.silu(m.a(x))), "glu"),
    "written out": (lambda m, x: m.out(m.a(x) * torch.sigmoid(m.a(x)) * m.b(x)), "glu"),
    "geglu": (lambda m, x: m.out(F.gelu(m.a(x)) * m.b(x)), "glu"),
    "packed": (lambda m, x: (lambda u, v: m.out(F.silu(u) * v))(*m.wide(x).chunk(2, -1)), "glu"),
    "F.glu": (lambda m, x: m.out(F.glu(m.wide(x))), "glu"),
    "bilinear": (lambda m, x: m.out(m.a(x) * m.b(x)), "glu"),
    "highway": (highway, "highway"),
    "torch.lerp": (lerped, "highway"),
    "difference": (difference, "highway"),
    "layer scale": (lambda m, x: x + m.scale * m.out(x), "residual-scale"),
    "zero tanh": (lambda m, x: x + torch.tanh(m.scale) * m.out(x), "residual-scale"),
    "attention output": (lambda m, x: m.out(attention(m, x) * torch.sigmoid(m.a(x))), "attention-output"),
    "squeeze and excite": (squeeze_excite, "channel"),
    "feature": (lambda m, x: m.out(x) * torch.sigmoid(m.scale), "feature"),
    "hard": (lambda m, x: m.out(x) * (m.a(x) > 0.5), "hard"),
}
LOOKALIKES = {
    "norm weight": rms_norm,
    "layer norm and residual": lambda m, x: x + m.norm(m.out(x)),
    "normed branch scaled by the norm's weight": lambda m, x: x + rms_norm(m, m.out(x)),
    "rotary": rotated,
    "plain SiLU": lambda m, x: m.out(F.silu(m.a(x))),
    "SiLU written out": lambda m, x: m.out(m.a(x) * torch.sigmoid(m.a(x))),
    "half a SiLU": lambda m, x: 0.5 * F.silu(m.a(x)),
    "attention weights": attention_weights,
    "scaled dot product attention": lambda m, x: m.out(attention(m, x)),
    "scaled by a constant": lambda m, x: 2.0 * m.a(x),
    "residual": lambda m, x: x + m.out(F.gelu(m.a(x))),
    "squared relu": lambda m, x: m.out(F.relu(m.a(x)) ** 2),
    "masked by an input": lambda m, x: m.out(x) * x.abs(),
    "dropout in eval": lambda m, x: F.dropout(m.out(x), 0.5, m.training),
}
X = torch.linspace(-1, 1, 48).reshape(2, 3, 8)


def kinds(expression) -> list[str]:
    return [found.kind for found in gatec.scan(Block(expression).eval(), X).gates]


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_found_once_and_named(name):
    expression, kind = GATES[name]
    assert kinds(expression) == [kind]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_no_gate(name):
    assert kinds(LOOKALIKES[name]) == []


PUT = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name, gate in gates().items() for case in gate.cases if not case.refuses
]  # fmt: skip
NAMED = {"select": ("feature", "sigmoid"), "conv_experts": ("router", "softmax")}


@pytest.mark.parametrize("name, case", PUT)
def test_what_a_pass_puts_the_census_finds(name, case):
    model = case.model().eval()
    before = [f.kind for f in gatec.scan(model, case.inputs).gates]
    converted = gatec.convert(model, name, inputs=case.inputs, **case.options)
    after = gatec.scan(converted, case.inputs).gates
    assert [f.kind for f in after] != before, [str(f) for f in after]


@pytest.mark.parametrize("name, case", [p for p in PUT if p.values[0] in NAMED])
def test_gates_on_rows_and_on_kernels_are_named(name, case):
    converted = gatec.convert(case.model().eval(), name, inputs=case.inputs, **case.options)
    found = [(f.kind, f.signal) for f in gatec.scan(converted, case.inputs).gates]
    assert found == [NAMED[name]] * case.put


@pytest.mark.parametrize("kind", sorted(set(ROUTERS) - {"hash"}))  # a hash learns nothing
def test_kernels_are_chosen_by_a_router_of_any_kind(kind):
    image = torch.linspace(-3, 3, 400).sin().reshape(4, 4, 5, 5)
    model = gatec.convert(nn.Sequential(nn.Conv2d(4, 6, 3)).eval(), "conv_experts", inputs=image, router=kind, top_k=2)
    (find,) = gatec.scan(model, image).gates
    assert (find.kind, find.site) == ("router", "0") and find.parameters >= 4 * 4


def test_a_census_prints_one_complete_line_per_find():
    text = str(gatec.scan(Block(highway).eval(), X))
    line = next(row for row in text.splitlines() if row.strip().startswith("highway"))
    assert "sigmoid" in line and "2x3x8" in line and "test_recognise.py:" in line


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad


class Above(torch.autograd.Function):
    """A value where it exceeds a bound; the gradient is that of the value."""

    @staticmethod
    def forward(ctx, value, bound, scale):
        ctx.save_for_backward(value)
        return scale * value * (value > bound)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


class Step(Above):
    @staticmethod
    def forward(ctx, value, bound, scale):
        return (value > bound).to(value.dtype)


class Untraced(Above):
    @staticmethod
    def forward(ctx, value, bound, scale):
        return value * (value > bound) if value.sum() > 0 else value


@pytest.mark.parametrize(("function", "kinds"), [(Above, ["hard"]), (Untraced, [])])
def test_a_function_with_its_own_backward_is_looked_into(function, kinds):
    model = Block(lambda m, x: m.out(function.apply(m.a(x), m.b(x), 2.0)))
    gates = gatec.scan(model.eval(), X).gates
    assert [f.kind for f in gates] == kinds and all(f.signal == "gt" for f in gates)


def test_a_decision_with_its_own_backward_gates():
    model = Block(lambda m, x: m.out(m.a(x) * Step.apply(m.b(x), 0.5, 1.0)))
    assert [(f.kind, f.signal) for f in gatec.scan(model.eval(), X).gates] == [("hard", "gt")]


@pytest.mark.parametrize("name", ["glu", "prune", "moe"])
def test_an_activation_that_cannot_be_looked_into_is_named(name):
    model = Block(lambda m, x: m.out(Cubed.apply(m.a(x))))
    (edit,) = gatec.why(model, name, inputs=X)
    assert (edit.verdict, edit.why.split()[:3]) == ("near", ["but", "for", "Cubed"])


class InTwoForms(nn.Module):
    """A child that is called without a condition first, and then with one."""

    def __init__(self):
        super().__init__()
        self.layer = Conditioned()

    def forward(self, x):
        return self.layer(x, self.layer(x).mean(1, keepdim=True))


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, c=None):
        return self.fc(x) if c is None else self.fc(x) * torch.sigmoid(self.gate(c))


def test_a_module_that_is_called_in_two_forms_is_looked_at_in_both():
    program = Program.of(InTwoForms().eval(), (torch.randn(2, 5, 8),), {})
    (find,) = finds(program.canon())
    assert (find.kind, find.signal, find.site) == ("channel", "sigmoid", "layer")
    assert not finds(program.canon(forms=False))
