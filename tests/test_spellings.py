"""One computation is one term, however it is spelled; two computations are two."""

import math
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import some
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from gatec.capture import Call, record, trace
from gatec.match import Canon, Table

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.export
B, T, D = 2, 3, 8


class Spelled(nn.Module):
    """A function, with the parameters and layers that it may use."""

    def __init__(self, function=None):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(2 * D, D))
        self.b = nn.Parameter(torch.randn(2 * D))
        self.wt = nn.Parameter(torch.randn(D, 2 * D))
        self.beta = nn.Parameter(torch.ones(D))
        self.up = nn.Linear(D, 2 * D)
        self.bare = nn.Linear(D, 2 * D, bias=False)
        self.shared = nn.Linear(D, D)

    def forward(self, *args):
        return self.function(self, *args)


class Reader:
    """Terms of many spellings in one table, so that equal terms are the same object."""

    def __init__(self):
        self.table = Table()
        self.inputs = {}

    def __call__(self, function, *args, how="fx", module=None):
        module = (module or Spelled()).eval()
        module.function = function
        graph, paths = HOW[how](module, args)
        graphs = {"": graph}

        def graph_of(path):
            if path not in graphs:
                graphs[path] = trace(
                    module.get_submodule(path), type(module.get_submodule(path)).forward, paths[path]
                ).graph
            return graphs[path]

        canon = Canon(graph_of, module.get_submodule, table=self.table)
        feed = [
            self.inputs.setdefault((i, a.shape), self.table.fresh(f"x{i}", tuple(a.shape))) for i, a in enumerate(args)
        ]
        return canon.sweep("", graph, feed)


def by_fx(module, args):
    calls = {path: found[0] for path, found in record(module, tuple(a.clone() for a in args), {}).items()}
    return trace(module, type(module).forward, Call(args, {})).graph, calls


def by_make_fx(module, args):
    return make_fx(lambda *a: module.function(module, *a), tracing_mode="fake")(*args).graph, {}


def together(spellings):
    """All of them as one function, so that they are exported once."""
    return lambda m, *args: tuple(f(m, *args) for f in spellings)


def by_core(module, args):
    found = torch.export.export(module, args).run_decompositions()
    return unlifted(found), {}


def by_export(module, args):
    return unlifted(torch.export.export(module, args)), {}


def unlifted(exported):
    module = exported.module(check_guards=False)
    for node in module.graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = operator.attrgetter(node.target)(module).data
    graph = module.graph
    for node in graph.nodes:  # one result comes back as in the other ways
        if node.op == "output":
            node.args = (node.args[0][0],) if len(node.args[0]) == 1 else (tuple(node.args[0]),)
    return graph


HOW = {"fx": by_fx, "make_fx": by_make_fx, "export": by_export, "core": by_core}
ATEN = ("make_fx", "export", "core")


def cdf(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def hf(name):
    from transformers.activations import ACT2FN

    act = ACT2FN[name]
    return lambda m, x: act.forward(x)


def in_place(m, x):
    y = x.clone()
    y.mul_(torch.sigmoid(x))
    return y


def exactly_half(m, x):
    return x * (0.5 + 0.5 * torch.erf(x * 0.7071067811865475))


C = math.sqrt(2 / math.pi)

ACTIVATIONS = {
    "silu": [
        lambda m, x: F.silu(x),
        lambda m, x: nn.SiLU()(x),
        lambda m, x: x * torch.sigmoid(x),
        lambda m, x: torch.sigmoid(x) * x,
        lambda m, x: x / (1 + torch.exp(-x)),
        lambda m, x: x / (torch.exp(-x) + 1.0),
        lambda m, x: torch.mul(x, x.sigmoid()),
        lambda m, x: x.mul(F.sigmoid(x)),
        in_place,
        lambda m, x: x * x.sigmoid(),
        hf("silu"),
        hf("swish"),
        lambda m, x: x * (1 / (1 + (-x).exp())),
        lambda m, x: x * 0.5 * (1 + torch.tanh(x / 2)),
        lambda m, x: x * torch.special.expit(x),
        lambda m, x: F.silu(x.clone(), inplace=True),
        lambda m, x: (x.float() * torch.sigmoid(x.float())).type_as(x),
        lambda m, x: torch.exp(x) / (1 + torch.exp(x)) * x,
        lambda m, x: x - x * torch.sigmoid(-x),
        lambda m, x: torch.div(x, 1 + torch.exp(torch.neg(x))),
        lambda m, x: x.div(x.neg().exp().add(1)),
        lambda m, x: x.view(-1, D).sigmoid().view_as(x) * x,
        lambda m, x: F.dropout(F.silu(x), 0.1, m.training),
        lambda m, x: nn.Identity()(x) * torch.sigmoid(x.contiguous()),
        lambda m, x: torch.addcmul(torch.zeros_like(x), x, torch.sigmoid(x)),
        lambda m, x: F.silu(x.to(torch.float64)).to(x.dtype),
    ],
    "gelu": [
        lambda m, x: F.gelu(x),
        lambda m, x: nn.GELU()(x),
        lambda m, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda m, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
        exactly_half,
        lambda m, x: x * cdf(x),
        lambda m, x: x * torch.special.ndtr(x),
        hf("gelu"),
        hf("gelu_python"),
        lambda m, x: x * 0.5 * torch.erfc(-x / math.sqrt(2)),
        lambda m, x: 0.5 * (x + x * torch.erf(x * 0.70710678)),
        lambda m, x: (x * (1 + (x / 2**0.5).erf())) / 2,
        lambda m, x: F.gelu(x, approximate="none"),
        lambda m, x: 0.5 * x * (torch.erf(x / 1.41421356) + 1),
        lambda m, x: x * (1 - 0.5 * torch.erfc(x / math.sqrt(2))),
        lambda m, x: x * 0.5 * (1 + torch.erf(x * 0.70710678)),
        lambda m, x: (x / 2) * (1 + torch.special.erf(x * (0.5**0.5))),
        lambda m, x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2)),
    ],
    "gelu_tanh": [
        lambda m, x: F.gelu(x, approximate="tanh"),
        lambda m, x: nn.GELU("tanh")(x),
        hf("gelu_new"),
        hf("gelu_fast"),
        hf("gelu_pytorch_tanh"),
        lambda m, x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * torch.pow(x, 3)))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x**3))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x * x * x))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
        lambda m, x: x * torch.sigmoid(2 * C * (x + 0.044715 * x**3)),
        lambda m, x: x * (0.5 + 0.5 * torch.tanh(C * x + C * 0.044715 * x**3)),
        lambda m, x: x * 0.5 * (torch.tanh((0.044715 * x.pow(3) + x) * C) + 1),
        hf("gelu_python_tanh"),
        lambda m, x: 0.5 * x * (1 + torch.tanh(C * x * (1 + 0.044715 * x.square()))),
    ],
    "quick_gelu": [
        lambda m, x: x * torch.sigmoid(1.702 * x),
        lambda m, x: torch.sigmoid(x * 1.702) * x,
        hf("quick_gelu"),
        lambda m, x: x / (1 + torch.exp(-1.702 * x)),
        lambda m, x: F.silu(1.702 * x) / 1.702,
        lambda m, x: F.silu(x * 1.702) * (1 / 1.702),
    ],
    "relu": [
        lambda m, x: F.relu(x),
        lambda m, x: nn.ReLU()(x),
        lambda m, x: x.clamp(min=0),
        lambda m, x: torch.clamp(x, 0),
        lambda m, x: x.clamp_min(0.0),
        lambda m, x: torch.maximum(x, torch.zeros_like(x)),
        lambda m, x: torch.max(x, torch.tensor(0.0)),
        lambda m, x: torch.max(x, torch.zeros_like(x)),
        lambda m, x: x * (x > 0),
        lambda m, x: x * (x > 0).float(),
        lambda m, x: x * (x > 0).to(x.dtype),
        lambda m, x: torch.where(x > 0, x, 0.0),
        lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda m, x: torch.where(x < 0, torch.zeros_like(x), x),
        lambda m, x: x.masked_fill(x < 0, 0.0),
        lambda m, x: F.threshold(x, 0.0, 0.0),
        lambda m, x: torch.relu(x),
        lambda m, x: x.relu(),
        lambda m, x: (x + x.abs()) / 2,
        lambda m, x: torch.where(x > 0, x, 0.0),
        lambda m, x: -torch.clamp(-x, max=0),
        lambda m, x: x.clone().relu_(),
        lambda m, x: torch.clip(x, 0, None),
        lambda m, x: torch.where(x <= 0, 0.0, x),
        lambda m, x: x * torch.ge(x, 0),
        lambda m, x: F.relu(F.relu(x)),
    ],
    "relu2": [
        lambda m, x: F.relu(x) ** 2,
        lambda m, x: F.relu(x).square(),
        lambda m, x: torch.pow(F.relu(x), 2),
        lambda m, x: F.relu(x) * F.relu(x),
        lambda m, x: x.clamp(min=0).pow(2),
        lambda m, x: x * F.relu(x),
        hf("relu2"),
        lambda m, x: torch.square(torch.relu(x)),
    ],
    "relu6": [
        lambda m, x: F.relu6(x),
        lambda m, x: nn.ReLU6()(x),
        lambda m, x: x.clamp(0, 6),
        lambda m, x: F.relu(x).clamp(max=6),
        lambda m, x: F.hardtanh(x, 0.0, 6.0),
        lambda m, x: torch.minimum(F.relu(x), torch.tensor(6.0)),
        lambda m, x: F.relu(x.clamp(max=6)),
    ],
    "hardsigmoid": [
        lambda m, x: F.hardsigmoid(x),
        lambda m, x: nn.Hardsigmoid()(x),
        lambda m, x: F.relu6(x + 3) / 6,
        lambda m, x: F.relu6(x + 3.0) * (1 / 6),
        lambda m, x: (x + 3).clamp(0, 6) / 6,
        lambda m, x: torch.clamp(x / 6 + 0.5, 0, 1),
        lambda m, x: ((x + 3) / 6).clamp(0, 1),
        lambda m, x: F.hardtanh(x + 3, 0, 6) / 6,
        lambda m, x: (x + 3).clamp_min(0).clamp_max(6) / 6,
    ],
    "hardswish": [
        lambda m, x: F.hardswish(x),
        lambda m, x: nn.Hardswish()(x),
        lambda m, x: x * F.relu6(x + 3) / 6,
        lambda m, x: x * F.hardsigmoid(x),
        lambda m, x: x * (F.relu6(x + 3) / 6),
        lambda m, x: x * (x + 3).clamp(0, 6) / 6,
        lambda m, x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    ],
    "mish": [
        lambda m, x: F.mish(x),
        lambda m, x: nn.Mish()(x),
        lambda m, x: x * torch.tanh(F.softplus(x)),
        hf("mish"),
        lambda m, x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        lambda m, x: torch.log1p(x.exp()).tanh() * x,
    ],
    "softplus": [
        lambda m, x: F.softplus(x),
        lambda m, x: nn.Softplus()(x),
        lambda m, x: torch.log(1 + torch.exp(x)),
        lambda m, x: torch.log1p(torch.exp(x)),
        lambda m, x: -F.logsigmoid(-x),
        lambda m, x: torch.logaddexp(x, torch.zeros_like(x)),
        lambda m, x: (1 + x.exp()).log(),
        lambda m, x: torch.where(x > 20, x, torch.log1p(torch.exp(x))),
        lambda m, x: F.softplus(2 * (x / 2)),
    ],
    "softplus_beta": [
        lambda m, x: F.softplus(x, beta=2),
        lambda m, x: F.softplus(2 * x) / 2,
        lambda m, x: nn.Softplus(2)(x),
        lambda m, x: 0.5 * torch.log(1 + torch.exp(2 * x)),
    ],
    "sigmoid": [
        lambda m, x: torch.sigmoid(x),
        lambda m, x: nn.Sigmoid()(x),
        lambda m, x: 1 / (1 + torch.exp(-x)),
        lambda m, x: 0.5 * (1 + torch.tanh(x / 2)),
        lambda m, x: F.sigmoid(x),
        lambda m, x: torch.special.expit(x),
        lambda m, x: x.sigmoid(),
        lambda m, x: 0.5 + 0.5 * torch.tanh(0.5 * x),
        lambda m, x: (1 + (-x).exp()).reciprocal(),
        lambda m, x: torch.exp(x) / (torch.exp(x) + 1),
        lambda m, x: 1 - torch.sigmoid(-x),
        lambda m, x: (1 + torch.exp(-x)) ** -1,
        lambda m, x: (torch.tanh(x * 0.5) + 1) / 2,
        lambda m, x: torch.pow(1 + torch.exp(-x), -1),
        lambda m, x: x.clone().sigmoid_(),
        lambda m, x: 1.0 - 1.0 / (1.0 + torch.exp(x)),
    ],
    "logsigmoid": [
        lambda m, x: F.logsigmoid(x),
        lambda m, x: torch.log(torch.sigmoid(x)),
        lambda m, x: -F.softplus(-x),
        lambda m, x: nn.LogSigmoid()(x),
        lambda m, x: -torch.log(1 + torch.exp(-x)),
    ],
    "tanh": [
        lambda m, x: torch.tanh(x),
        lambda m, x: nn.Tanh()(x),
        lambda m, x: F.tanh(x),
        lambda m, x: 2 * torch.sigmoid(2 * x) - 1,
        lambda m, x: -torch.tanh(-x),
        lambda m, x: 2 / (1 + torch.exp(-2 * x)) - 1,
    ],
    "swish_beta": [
        lambda m, x: x * torch.sigmoid(m.beta * x),
        lambda m, x: torch.sigmoid(x * m.beta) * x,
        lambda m, x: x / (1 + torch.exp(-m.beta * x)),
    ],
    "leaky_relu": [
        lambda m, x: F.leaky_relu(x, 0.1),
        lambda m, x: nn.LeakyReLU(0.1)(x),
        lambda m, x: torch.where(x > 0, x, 0.1 * x),
        lambda m, x: torch.maximum(x, 0.1 * x),
        lambda m, x: torch.max(0.1 * x, x),
        lambda m, x: F.relu(x) - 0.1 * F.relu(-x),
        lambda m, x: x.clamp(min=0) + 0.1 * x.clamp(max=0),
        lambda m, x: torch.where(x < 0, x * 0.1, x),
    ],
    "elu": [
        lambda m, x: F.elu(x),
        lambda m, x: nn.ELU()(x),
        lambda m, x: torch.where(x > 0, x, torch.exp(x) - 1),
        lambda m, x: torch.where(x > 0, x, torch.expm1(x)),
        lambda m, x: x.clamp(min=0) + (torch.exp(x) - 1).clamp(max=0),
        lambda m, x: F.celu(x),
    ],
    "elu_alpha": [
        lambda m, x: F.elu(x, 0.5),
        lambda m, x: nn.ELU(0.5)(x),
        lambda m, x: torch.where(x > 0, x, 0.5 * (torch.exp(x) - 1)),
        lambda m, x: F.relu(x) + torch.minimum(0.5 * (x.exp() - 1), torch.zeros_like(x)),
    ],
    "selu": [
        lambda m, x: F.selu(x),
        lambda m, x: nn.SELU()(x),
        lambda m, x: 1.0507009873554805 * F.elu(x, 1.6732632423543772),
    ],
    "softsign": [
        lambda m, x: F.softsign(x),
        lambda m, x: nn.Softsign()(x),
        lambda m, x: x / (1 + x.abs()),
        lambda m, x: x / (torch.abs(x) + 1),
    ],
    "exact_zero": [
        lambda m, x: x - x.detach(),
        lambda m, x: 0 * x,
        lambda m, x: torch.zeros_like(x),
        lambda m, x: 2 * x - x - x,
    ],
    "one_plus_tanh": [
        lambda m, x: 1 + torch.tanh(x),
        lambda m, x: x.tanh() + 1,
        lambda m, x: torch.tanh(x).add(1),
        lambda m, x: 1 - torch.tanh(-x),
    ],
}
GATES = {
    "swiglu": [
        lambda m, x, y: F.silu(x) * y,
        lambda m, x, y: y * F.silu(x),
        lambda m, x, y: x * torch.sigmoid(x) * y,
        lambda m, x, y: x * (y * torch.sigmoid(x)),
        lambda m, x, y: torch.mul(y, x) * x.sigmoid(),
        lambda m, x, y: F.silu(x.float()).to(x.dtype) * y,
        lambda m, x, y: F.silu(x).mul_(y),
        lambda m, x, y: (F.silu(x).reshape(-1, D) * y.reshape(-1, D)).view(B, T, D),
        lambda m, x, y: F.dropout(F.silu(x), 0.5, False) * y.contiguous(),
        lambda m, x, y: y * x / (1 + torch.exp(-x)),
        lambda m, x, y: x * y / (1 + torch.exp(-x)),
        lambda m, x, y: y * 2 * (F.silu(x) / 2),
        lambda m, x, y: torch.addcmul(torch.zeros_like(x), F.silu(x), y),
        lambda m, x, y: (x * y).double() * torch.sigmoid(x).type_as(x),
        lambda m, x, y: nn.SiLU()(x).unsqueeze(0).squeeze(0) * y,
    ],
    "lerp": [
        lambda m, x, y: torch.sigmoid(m.beta) * x + (1 - torch.sigmoid(m.beta)) * y,
        lambda m, x, y: y + torch.sigmoid(m.beta) * (x - y),
        lambda m, x, y: torch.lerp(y, x, torch.sigmoid(m.beta)),
        lambda m, x, y: x * torch.sigmoid(m.beta) + y - y * torch.sigmoid(m.beta),
        lambda m, x, y: torch.sigmoid(m.beta).neg().add(1) * y + torch.sigmoid(m.beta) * x,
        lambda m, x, y: torch.rsub(torch.sigmoid(m.beta), 1) * y + torch.sigmoid(m.beta) * x,
        lambda m, x, y: x * torch.sigmoid(m.beta) + y * torch.sigmoid(-m.beta),
        lambda m, x, y: y - torch.sigmoid(m.beta) * (y - x),
        lambda m, x, y: x + (1 - torch.sigmoid(m.beta)) * (y - x),
        lambda m, x, y: x - (1 - torch.sigmoid(m.beta)) * (x - y),
        lambda m, x, y: y - (torch.sigmoid(m.beta) - 0) * y + x * torch.sigmoid(m.beta),
        lambda m, x, y: y.lerp(x, m.beta.sigmoid()),
        lambda m, x, y: torch.addcmul(y, torch.sigmoid(m.beta), x - y),
        lambda m, x, y: x * torch.sigmoid(m.beta) - (torch.sigmoid(m.beta) - 1) * y,
        lambda m, x, y: torch.ones_like(m.beta).sub(m.beta.sigmoid()) * y + m.beta.sigmoid() * x,
    ],
    "lerp_of_sum": [
        lambda m, x, y: torch.sigmoid(m.beta) * (x + y) + (1 - torch.sigmoid(m.beta)) * F.silu(y),
        lambda m, x, y: F.silu(y) + torch.sigmoid(m.beta) * (x + y - F.silu(y)),
        lambda m, x, y: torch.lerp(F.silu(y), x + y, torch.sigmoid(m.beta)),
    ],
    "lerp_to_sum": [
        lambda m, x, y: torch.sigmoid(m.beta) * F.silu(y) + (1 - torch.sigmoid(m.beta)) * (x + y),
        lambda m, x, y: (x + y) + torch.sigmoid(m.beta) * (F.silu(y) - (x + y)),
        lambda m, x, y: torch.lerp(x + y, F.silu(y), torch.sigmoid(m.beta)),
    ],
    "straight_through": [
        lambda m, x, y: x,
        lambda m, x, y: y + (x - y).detach(),
        lambda m, x, y: x.detach() - y.detach() + y,
        lambda m, x, y: y - (y - x).detach(),
    ],
    "mean": [
        lambda m, x, y: 0.5 * x + 0.5 * y,
        lambda m, x, y: (x + y) / 2,
        lambda m, x, y: torch.lerp(x, y, 0.5),
        lambda m, x, y: 0.5 * (y + x),
        lambda m, x, y: torch.add(x / 2, y, alpha=0.5),
    ],
    "modulated": [
        lambda m, x, y: x * (1 + m.beta) + y,
        lambda m, x, y: y + (m.beta + 1) * x,
        lambda m, x, y: torch.addcmul(y, x, 1 + m.beta),
    ],
    "silu of a sum": [
        lambda m, x, y: F.silu(x + y),
        lambda m, x, y: (x + y) * torch.sigmoid(x + y),
        lambda m, x, y: (x + y) / (1 + torch.exp(-(x + y))),
        lambda m, x, y: (y + x) / (1 + torch.exp(-x - y)),
    ],
    "gelu of a sum": [
        lambda m, x, y: F.gelu(x + 2 * y),
        lambda m, x, y: 0.5 * (x + 2 * y) * (1 + torch.erf((x + 2 * y) / math.sqrt(2))),
    ],
    "gelu_tanh of a sum": [
        lambda m, x, y: F.gelu(x + y, approximate="tanh"),
        lambda m, x, y: 0.5 * (x + y) * (1 + torch.tanh(C * (x + y + 0.044715 * (x + y) ** 3))),
    ],
    "gelu of a product": [
        lambda m, x, y: F.gelu(x * y),
        lambda m, x, y: 0.5 * x * y * (1 + torch.erf(x * y / math.sqrt(2))),
    ],
    "gelu_tanh of a product": [
        lambda m, x, y: F.gelu(x * y, approximate="tanh"),
        lambda m, x, y: y * 0.5 * x * (1 + torch.tanh(C * (x * y + 0.044715 * (x * y) ** 3))),
        lambda m, x, y: 0.5 * x * y * (1 + torch.tanh(C * x * y * (1 + 0.044715 * (x * y) ** 2))),
    ],
    "silu of 2x": [lambda m, x, y: F.silu(2 * x), lambda m, x, y: 2 * x * torch.sigmoid(2 * x)],
}
LINEARS = {
    "stored (out, in)": [
        lambda m, x: F.linear(x, m.w, m.b),
        lambda m, x: x @ m.w.T + m.b,
        lambda m, x: torch.matmul(x, m.w.t()) + m.b,
        lambda m, x: m.b + x @ m.w.transpose(0, 1),
        lambda m, x: torch.addmm(m.b, x.view(-1, D), m.w.t()).view(B, T, 2 * D),
        lambda m, x: torch.einsum("...i,oi->...o", x, m.w) + m.b,
        lambda m, x: torch.einsum("bti,oi->bto", x, m.w) + m.b,
        lambda m, x: F.linear(x, m.w) + m.b,
        lambda m, x: torch.mm(x.reshape(-1, D), m.w.permute(1, 0)).view(B, T, -1) + m.b,
        lambda m, x: torch.add(torch.matmul(x, m.w.mT), m.b),
        lambda m, x: F.linear(x.float(), m.w.float(), m.b.float()),
        lambda m, x: torch.einsum("oi,bti->bto", m.w, x) + m.b,
    ],
    "stored (in, out)": [
        lambda m, x: x @ m.wt + m.b,
        lambda m, x: torch.matmul(x, m.wt) + m.b,
        lambda m, x: torch.addmm(m.b, x.view(-1, D), m.wt).view(B, T, -1),
        lambda m, x: F.linear(x, m.wt.t(), m.b),
        lambda m, x: torch.einsum("...i,io->...o", x, m.wt) + m.b,
    ],
    "a layer": [
        lambda m, x: m.up(x),
        lambda m, x: F.linear(x, m.up.weight, m.up.bias),
        lambda m, x: x @ m.up.weight.T + m.up.bias,
    ],
    "half of a layer": [
        lambda m, x: m.up(x)[..., :D],
        lambda m, x: F.linear(x, m.up.weight[:D], m.up.bias[:D]),
        lambda m, x: F.linear(x, m.up.weight.chunk(2)[0], m.up.bias.chunk(2)[0]),
    ],
}


def swi(pair):
    gate, up = pair
    return F.silu(gate) * up


PACKED = {
    "halves": [
        lambda m, x: swi(m.up(x).chunk(2, -1)),
        lambda m, x: swi(m.up(x).chunk(2, dim=2)),
        lambda m, x: swi(m.up(x).split(D, -1)),
        lambda m, x: swi(torch.split(m.up(x), [D, D], dim=-1)),
        lambda m, x: swi((m.up(x)[..., :D], m.up(x)[..., D:])),
        lambda m, x: swi((m.up(x)[:, :, :D], m.up(x)[:, :, D:])),
        lambda m, x: swi((m.up(x).narrow(-1, 0, D), m.up(x).narrow(-1, D, D))),
        lambda m, x: swi(m.up(x).tensor_split(2, dim=-1)),
        lambda m, x: swi(m.up(x).tensor_split([D], dim=-1)),
        lambda m, x: swi(m.up(x).view(B, T, 2, D).unbind(-2)),
        lambda m, x: swi(m.up(x).unflatten(-1, (2, D)).unbind(2)),
        lambda m, x: swi((m.up(x).reshape(B, T, 2, D)[..., 0, :], m.up(x).reshape(B, T, 2, D)[:, :, 1])),
        lambda m, x: swi(p.squeeze(2) for p in m.up(x).view(B, T, 2, D).chunk(2, 2)),
        lambda m, x: swi((m.up(x)[..., :-D], m.up(x)[..., -D:])),
        lambda m, x: swi((m.up(x).view(-1, 2 * D)[:, :D].view(B, T, D), m.up(x)[..., D:])),
        lambda m, x: F.silu((u := m.up(x))[..., : u.shape[-1] // 2]) * u[..., u.shape[-1] // 2 :],
        lambda m, x: swi((F.linear(x, m.up.weight[:D], m.up.bias[:D]), F.linear(x, m.up.weight[D:], m.up.bias[D:]))),
        lambda m, x: swi(m.up(x).view(B, T, 2, D).permute(0, 1, 2, 3).select(2, i) for i in (0, 1)),
        lambda m, x: swi(m.up(x).split_with_sizes([D, D], -1)),
        lambda m, x: swi((m.up(x).view(B, T, 2, D).select(-2, 0), m.up(x).chunk(2, -1)[1])),
    ],
    "interleaved": [
        lambda m, x: swi((m.up(x)[..., ::2], m.up(x)[..., 1::2])),
        lambda m, x: swi(m.up(x).view(B, T, D, 2).unbind(-1)),
        lambda m, x: swi((m.up(x).unflatten(-1, (D, 2))[..., 0], m.up(x).unflatten(-1, (-1, 2))[..., 1])),
        lambda m, x: swi((m.up(x).reshape(B, T, D, 2).select(3, 0), m.up(x).reshape(B, T, D, 2).select(-1, 1))),
        lambda m, x: swi(p.squeeze(-1) for p in m.up(x).view(B, T, D, 2).split(1, -1)),
    ],
    "glu": [
        lambda m, x: F.glu(m.up(x)),
        lambda m, x: nn.GLU()(m.up(x)),
        lambda m, x: F.glu(m.up(x), dim=2),
        lambda m, x: (h := m.up(x).chunk(2, -1))[0] * h[1].sigmoid(),
        lambda m, x: m.up(x)[..., :D] / (1 + torch.exp(-m.up(x)[..., D:])),
        lambda m, x: torch.sigmoid(m.up(x).split(D, -1)[1]) * m.up(x)[:, :, :D],
    ],
    "halves of a value": [
        lambda m, x: swi(x.chunk(2, -1)),
        lambda m, x: swi((x[..., : D // 2], x[..., D // 2 :])),
        lambda m, x: swi(x.view(B, T, 2, D // 2).unbind(2)),
        lambda m, x: swi(x.split(D // 2, 2)),
    ],
    "softmax": [
        lambda m, x: torch.softmax(x, -1),
        lambda m, x: F.softmax(x, dim=2),
        lambda m, x: nn.Softmax(-1)(x),
        lambda m, x: x.softmax(2),
        lambda m, x: F.softmax(x.float(), dim=-1, dtype=torch.float32).to(x.dtype),
        lambda m, x: x.view(-1, D).softmax(1).view(B, T, D),
    ],
}
FORMS = {**ACTIVATIONS, **GATES, **LINEARS, **PACKED}


def inputs(form):
    x, y = torch.randn(B, T, D), torch.randn(B, T, D)
    return (x, y) if form in GATES else (x,)


def check_values(form, spellings, args, module):
    """The spellings in this file are themselves right."""
    first = spellings[0](module, *[a.clone() for a in args])
    for i, spelled in enumerate(spellings):
        error = (spelled(module, *[a.clone() for a in args]) - first).abs().max()
        assert error < 2e-3, f"{form}[{i}] is another function: it differs by {error}"


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_is_one_term(form):
    read, args, module = Reader(), inputs(form), Spelled().eval()
    check_values(form, FORMS[form], args, module)
    first, *others = [read(f, *args, module=module) for f in FORMS[form]]
    strangers = {i: t for i, t in enumerate(others, 1) if t is not first}
    assert not strangers, f"{first!r} but {strangers}"


@pytest.mark.parametrize("how", ATEN)
@pytest.mark.parametrize("form", some(FORMS))
def test_every_spelling_is_one_term_in_aten(form, how):
    if how == "make_fx" and form in {
        **LINEARS,
        **PACKED,
        "swish_beta": 0,
        **{f: 0 for f in GATES if "lerp" in f or f == "modulated"},
    }:
        pytest.skip("make_fx gives parameters no names")
    read, args, module = Reader(), inputs(form), Spelled().eval()
    with torch.no_grad():
        first = read(FORMS[form][0], *args, module=module)
        found = dict(enumerate(read(together(FORMS[form]), *args, module=module, how=how)))
    strangers = {i: t for i, t in found.items() if t is not first and (form, how, i) not in MISSED}
    assert not strangers, f"{first!r} but {strangers}"


# logaddexp is decomposed with a case for infinities
MISSED = {("softplus", "core", 5)}


def written_twice(m, x, y):
    z = x.clone()
    old = torch.sigmoid(z)
    z.mul_(2)
    return z * old


def through_a_view(m, x, y):
    z = x.clone()
    z.view(-1).mul_(2)
    return z * torch.sigmoid(x)


def by_index(m, x, y):
    z = x.clone()
    z[..., 0] = 0
    return z * torch.sigmoid(x)


def in_place_module(m, x, y):
    z = x.clone()
    F.relu(z, True)
    return z * torch.sigmoid(x)


def alias(m, x, y):
    z = x.clone()
    w = z
    w.add_(1)
    return z * torch.sigmoid(x)


DIFFERENT = {
    "silu": [
        lambda m, x, y: F.silu(x),
        lambda m, x, y: x * torch.sigmoid(y),
        lambda m, x, y: 0.5 * F.silu(x),
        lambda m, x, y: x * torch.sigmoid(2 * x),
        lambda m, x, y: x * torch.sigmoid(x + 1),
        lambda m, x, y: x * torch.sigmoid(-x),
        lambda m, x, y: x * torch.sigmoid(x.flip(0)),
        lambda m, x, y: x * (1 - torch.sigmoid(y)),
        lambda m, x, y: x * x * torch.sigmoid(x),
        lambda m, x, y: x / (2 + torch.exp(-x)),
        lambda m, x, y: x / (1 + 2 * torch.exp(-x)),
        lambda m, x, y: x / (1 - torch.exp(-x)),
        lambda m, x, y: x * torch.sigmoid(x.int()),
        lambda m, x, y: torch.div(F.silu(x), 1.5, rounding_mode="floor"),
        lambda m, x, y: x * torch.sigmoid(x.transpose(0, 1).reshape(B, T, D)),
        written_twice,
        through_a_view,
        by_index,
        in_place_module,
        alias,
        lambda m, x, y: (x.view(1, 6, D) * torch.sigmoid(x).view(6, 1, D)).mean(0).view(B, T, D),
        lambda m, x, y: x * torch.sigmoid(x.view(torch.int32)),
    ],
    "relu": [
        lambda m, x, y: F.relu(x),
        lambda m, x, y: x * (x > 1),
        lambda m, x, y: x * (y > 0),
        lambda m, x, y: x * (x < 0),
        lambda m, x, y: x.clamp(max=0),
        lambda m, x, y: x.clamp(min=1),
        lambda m, x, y: torch.where(x > 0, 1.0, 0.0),
        lambda m, x, y: torch.where(x > 0, x, 1.0),
        lambda m, x, y: torch.where(y > 0, x, 0.0),
        lambda m, x, y: torch.max(x, 0)[0],
        lambda m, x, y: (x - x.abs()) / 2,
        lambda m, x, y: torch.where(x > 0, 0.0, x) - x.amax(0),
        lambda m, x, y: F.threshold(x, 0.0, 1.0),
        lambda m, x, y: F.threshold(x, 1.0, 0.0),
        lambda m, x, y: x * (x.detach() + 1 > 0),
        lambda m, x, y: x.clamp(1, 5).clamp(0, 6),
        lambda m, x, y: x.clamp(0, 6),
        lambda m, x, y: F.relu(x) * F.relu(y),
        lambda m, x, y: F.relu(x) ** 2,
    ],
    "gelu": [
        lambda m, x, y: F.gelu(x),
        lambda m, x, y: F.gelu(x, approximate="tanh"),
        lambda m, x, y: F.gelu(y),
        lambda m, x, y: 0.5 * x * (1 + torch.erf(x / 1.5)),
        lambda m, x, y: 0.5 * x * (1 + torch.erf(y / math.sqrt(2))),
        lambda m, x, y: 0.5 * x * (1 - torch.erf(x / math.sqrt(2))),
        lambda m, x, y: 0.5 * x * (1 + torch.tanh(C * (x + 0.05 * x**3))),
        lambda m, x, y: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        lambda m, x, y: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x**2))),
        lambda m, x, y: 0.5 * y * (1 + torch.tanh(C * (x + 0.044715 * x**3))),
        lambda m, x, y: x * (1 + torch.erf(x / math.sqrt(2))),
        lambda m, x, y: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * y**3))),
        lambda m, x, y: x * torch.sigmoid(1.702 * x),
        lambda m, x, y: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    ],
    "packed": [
        lambda m, x, y: swi(m.up(x).chunk(2, -1)),
        lambda m, x, y: swi(m.up(x).chunk(2, -1)[::-1]),
        lambda m, x, y: swi((m.up(x)[..., ::2], m.up(x)[..., 1::2])),
        lambda m, x, y: swi((m.up(x)[..., :D], m.up(x)[..., :D])),
        lambda m, x, y: swi((m.up(x)[..., 1 : D + 1], m.up(x)[..., D:])),
        lambda m, x, y: swi((m.up(x)[..., :D], m.up(y)[..., D:])),
        lambda m, x, y: swi((m.bare(x)[..., :D], m.up(x)[..., D:])),
        lambda m, x, y: F.glu(m.up(x)),
        lambda m, x, y: swi((F.linear(x, m.up.weight[:D]), m.up(x)[..., D:])),
        lambda m, x, y: swi((F.linear(x, m.up.weight[:D], m.up.bias[D:]), m.up(x)[..., D:])),
    ],
    "sums": [
        lambda m, x, y: x * m.beta + y * (1 - m.beta),
        lambda m, x, y: y * m.beta + x * (1 - m.beta),
        lambda m, x, y: x * m.beta + y * (1 + m.beta),
        lambda m, x, y: x * m.beta + y - y * m.beta * m.beta,
        lambda m, x, y: y + m.beta * (x + y),
        lambda m, x, y: y + 2 * m.beta * (x - y),
        lambda m, x, y: x + y,
        lambda m, x, y: x - y,
        lambda m, x, y: y - x,
        lambda m, x, y: x + y + 1e-6,
        lambda m, x, y: x + y + 1e-12,
        lambda m, x, y: 1.001 * x + y,
        lambda m, x, y: torch.add(x, y, alpha=2),
        lambda m, x, y: torch.rsub(x, y, alpha=2),
    ],
    "sizes": [
        lambda m, x, y: x[0] + 0 * y,
        lambda m, x, y: x.view(-1, D)[0] + 0 * y,
        lambda m, x, y: x[:, 0].unsqueeze(0).mean(1) + y,
        lambda m, x, y: x.softmax(1) * y,
        lambda m, x, y: x.softmax(-1) * y,
        lambda m, x, y: x.softmax(0) * y,
        lambda m, x, y: x.view(1, -1, D).softmax(1).view(B, T, D) * y,
        lambda m, x, y: x / x.shape[1],
        lambda m, x, y: x / T,
        lambda m, x, y: x.sum(1, keepdim=True) * y,
        lambda m, x, y: x.sum(0, keepdim=True) * y,
    ],
}


@pytest.mark.parametrize("how", ["fx", "export", "core"])
@pytest.mark.parametrize("trap", DIFFERENT)
def test_no_two_computations_are_one_term(trap, how):
    read, module = Reader(), Spelled().eval()
    args = torch.randn(B, T, D), torch.randn(B, T, D)
    with torch.no_grad():
        found = read(together(DIFFERENT[trap]), *args, module=module, how=how)
        values = [f(module, *[a.clone() for a in args]) for f in DIFFERENT[trap]]
    twins = [(i, j) for i in range(len(found)) for j in range(i) if found[i] is found[j]]
    wrong = [
        (i, j) for i, j in twins if values[i].shape != values[j].shape or (values[i] - values[j]).abs().max() > 1e-4
    ]
    assert not wrong, f"{wrong}: {found[wrong[0][0]]!r}"


def test_a_size_is_not_the_number_that_it_happens_to_be():
    read, x = Reader(), torch.randn(B, T, D)
    assert read(lambda m, x: x / x.shape[1], x) is not read(lambda m, x: x / T, x)
    assert read(lambda m, x: x / x.shape[1], x) is read(lambda m, x: x.float() / x.shape[1], x)


@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-12])
def test_a_small_number_is_not_nothing(small):
    read, x = Reader(), torch.randn(B, T, D)
    assert read(lambda m, x: torch.rsqrt(x + small), x) is not read(lambda m, x: torch.rsqrt(x), x)


class Calls(nn.Module):
    def __init__(self, act, after):
        super().__init__()
        self.act, self.after = act, after

    def forward(self, x):
        z = x.clone()
        self.act(z)
        return self.after(z) * torch.sigmoid(x)


class Doubles(nn.Module):
    def forward(self, x):
        x.mul_(2)
        return x + 1


def terms_of(module, x):
    calls = {path: found[0] for path, found in record(module, (x.clone(),), {}).items()}
    graphs = {
        p: trace(module.get_submodule(p), type(module.get_submodule(p)).forward, c).graph for p, c in calls.items()
    }
    canon = Canon(graphs.get, module.get_submodule)
    return canon.sweep("", graphs[""], [canon.table.fresh("x", tuple(x.shape))]), canon.table


@pytest.mark.parametrize(
    "act", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), Doubles()], ids=lambda m: type(m).__name__
)
def test_what_a_child_writes_its_parent_sees(act):
    term, _ = terms_of(Calls(act, nn.Identity()), torch.randn(B, D))
    assert term.op != "silu", f"the operand was overwritten, and {term!r} does not say so"


def test_a_conv1d_of_transformers_is_a_linear_layer():
    from transformers.pytorch_utils import Conv1D

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = Conv1D(2 * D, D)

        def forward(self, x):
            gate, up = self.up(x).split(D, dim=2)
            return F.silu(gate) * up

    term, _ = terms_of(Block(), torch.randn(B, T, D))
    layers = sorted(
        (a.data for f in term.args for a in ((f.args[0],) if f.op == "silu" else (f,))), key=lambda d: d.rows
    )
    assert [(d.path, d.rows, d.transposed, d.bias) for d in layers] == [
        ("up", (0, D, 1), True, "up.bias"),
        ("up", (D, 2 * D, 1), True, "up.bias"),
    ]


# -- random rewritings keep the term --------------------------------------------------------------------------------

NOISE = [
    lambda x: x,
    lambda x: x.float(),
    lambda x: x.to(torch.float64).to(torch.float32),
    lambda x: x.view(B * T, D).view(B, T, D),
    lambda x: x.contiguous(),
    lambda x: x.reshape(B, T, D),
    lambda x: F.dropout(x, 0.1, False),
    lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.clone(),
    lambda x: x * 2 / 2,
    lambda x: x + 1 - 1,
    lambda x: x.neg().neg(),
    lambda x: nn.Identity()(x),
]


@st.composite
def rewritten(draw, leaves, join):
    """The same n-ary operation over the leaves: in some order, associated somehow, with noise between."""
    parts = list(draw(st.permutations(leaves)))
    while len(parts) > 1:
        i = draw(st.integers(0, len(parts) - 2))
        a, b = parts[i], parts[i + 1]
        if draw(st.booleans()):
            a, b = b, a
        noise = draw(st.sampled_from(NOISE))
        parts[i : i + 2] = [lambda e, a=a, b=b, noise=noise: noise(join(a(e), b(e)))]
    return parts[0]


@st.composite
def expressions(draw):
    """silu(x) * y * (x + y + beta) * 0.5 * sigmoid(y), somehow."""

    def noisy(f):
        noise = draw(st.sampled_from(NOISE))
        return lambda e: noise(f(e))

    total = draw(rewritten([lambda e: e[0], lambda e: e[1], lambda e: e[2].beta], operator.add))
    silu = draw(
        st.sampled_from(
            [
                [lambda e: F.silu(e[0])],
                [lambda e: e[0], lambda e: torch.sigmoid(e[0])],
                [lambda e: e[0], lambda e: 1 / (1 + torch.exp(-e[0]))],
            ]
        )
    )
    factors = [*silu, lambda e: e[1], total, lambda e: 0.5 * torch.sigmoid(e[1] * 2)]
    return draw(rewritten([f if f is total else noisy(f) for f in factors], operator.mul))


@settings(max_examples=60, deadline=None)
@given(expressions())
def test_random_rewritings_keep_the_term(expression):
    read, module = Reader(), Spelled().eval()
    x, y = torch.randn(B, T, D), torch.randn(B, T, D)
    plain = read(lambda m, x, y: F.silu(x) * y * (x + y + m.beta) * 0.5 * torch.sigmoid(2 * y), x, y, module=module)
    found = read(lambda m, x, y: expression((x, y, m)), x, y, module=module)
    assert found is plain
