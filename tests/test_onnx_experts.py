"""`export(experts="ort")`: mixtures become onnxruntime's own operator, where it computes the same."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import some
from torch import Tensor, nn
from torch.nn import functional as F

import gatec
from gatec import GatecError
from gatec.capture import evaluating
from gatec.grouped import grouped_linear
from gatec.onnx.flat import flatten
from gatec.onnx.mixtures import merge
from gatec.onnx.signs import nonnegative
from gatec.onnx.translate import decomposed, quiet, traced

pytest.importorskip("onnxruntime")

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
FOUR = {"experts": 4, "top_k": 2}
NAMED = {
    "relu": F.relu,
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "silu": lambda x: x * torch.sigmoid(x),
}


class MLP(nn.Module):
    def __init__(self, act: Any = F.silu, gated: bool = True, bias: bool = True, out: int = 16) -> None:
        super().__init__()
        self.act = act
        self.gate = nn.Linear(16, 64, bias=bias) if gated else None
        self.up, self.down = nn.Linear(16, 64, bias=bias), nn.Linear(64, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        out: Tensor = self.down(self.act(inner) if self.gate is None else inner)
        return out


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MLP(), MLP(F.gelu, gated=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


class Spelled(nn.Module):
    """A mixture by hand, that can go wrong in several ways."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way
        self.gate, self.up, self.down = (nn.Parameter(torch.randn(4, 16, 16) / 4) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(4, 16))
        self.score = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        share, choice = torch.softmax(self.score(x), -1).topk(2, -1)
        expert, order = torch.sort(choice.flatten(), stable=True)
        ends, token = (expert.unsqueeze(-1) <= torch.arange(4)).sum(0), order // 2
        rows = x[token]
        weight = (share - 1 if self.way == "negative" else share).flatten()[order].unsqueeze(-1)
        gate = grouped_linear(rows, self.gate, ends) + (self.bias[expert] if self.way == "one bias" else 0.0)
        up = grouped_linear((x.flip(-1)[token] if self.way == "other rows" else rows), self.up, ends)
        inner = up if self.way == "linear" else F.silu(gate) * up
        inner = inner.softmax(-1) if self.way == "norm" else inner
        if self.way == "late":
            return self.summed(grouped_linear(inner, self.down, ends) * weight, order, token, x)
        out = grouped_linear(inner if self.way == "even" else inner * weight, self.down, ends)
        return (self.summed(out, order, token, x), out) if self.way == "twice" else self.summed(out, order, token, x)

    def summed(self, out: Tensor, order: Tensor, token: Tensor, x: Tensor) -> Tensor:
        if self.way == "add":
            return x.new_zeros(x.shape).index_add(0, token, out)
        if self.way == "onto":
            return x.index_add(0, token, out)
        back = order if self.way == "order" else torch.argsort(order)
        return out.index_select(0, back).unflatten(0, (-1, 2)).sum(1)


def program_of(model: nn.Module, x: Tensor = X) -> torch.export.ExportedProgram:
    with torch.no_grad(), evaluating(model):
        flat, tensors = flatten(model, x)
        flat(*tensors.values())  # what a rewritten model captures, it captures outside of a trace
        return decomposed(traced(flat, tensors, []))


def mixture(model: nn.Module, name: str = "moe", x: Tensor = X, **options: Any) -> nn.Module:
    return gatec.convert(model, name, inputs=x, **options).eval()


def is_merged(model: nn.Module, x: Tensor = X) -> str:
    """Of the program as it is traced, and of the same in fewer operators."""
    program = program_of(model, x)
    with quiet():
        fewer = program.run_decompositions({})
    want = program.module()(x)
    (line,), again = merge(program), merge(fewer)
    torch.testing.assert_close(program.module()(x), want)
    torch.testing.assert_close(fewer.module()(x), want)
    assert again == [line]
    return line


@pytest.mark.parametrize("name, bias", some([(n, b) for n in NAMED for b in (True, False)], of=2, at=1))
def test_an_activation_is_known_by_what_it_gives(name: str, bias: bool) -> None:
    line = is_merged(mixture(MLP(NAMED[name], False, bias), **FOUR))
    assert line == f"the model: onnxruntime's MoE, 4 experts, at most 2 for a token, {name}"


@pytest.mark.parametrize("router", some(["topk_softmax", "sigmoid", "noisy", "hash", "multi_gate", "expert_choice", "dynamic",
                                         "dense_to_sparse"]))  # fmt: skip
def test_any_router_whose_weights_are_not_negative(router: str) -> None:
    assert ", swiglu" in is_merged(mixture(MLP(), router=router, **FOUR))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moe", {**FOUR, "shared": 1}),
        ("moe", {**FOUR, "stand_in": True}),
        ("upcycle", FOUR),
        ("upcycle", {**FOUR, "shards": 2, "router": "sigmoid"}),
        ("adaptive_width", {"learners": 4}),
    ],
)
def test_what_is_added_to_a_mixture_stays_beside_it(name: str, options: dict[str, Any]) -> None:
    assert ", swiglu" in is_merged(mixture(MLP(), name, **options))


@pytest.mark.parametrize(
    ("way", "top_k", "activation"), [("", 2, "swiglu"), ("add", 4, "swiglu"), ("linear", 2, "identity")]
)
def test_a_mixture_by_hand(way: str, top_k: int, activation: str) -> None:
    line = is_merged(Spelled(way), X[0])
    assert line == f"the model: onnxruntime's MoE, 4 experts, at most {top_k} for a token, {activation}"


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("negative", "the weights of its router may be negative, and the operator leaves such experts out"),
        ("one bias", "of gate and up one has a bias, and the operator has both or none"),
        ("other rows", "its gate and up read different values"),
        ("norm", "between its layers there is softmax, which does not act on each number alone"),
        ("even", "the weights of its router do not stand before its last product"),
        ("late", "what its experts give is not just summed for each token"),
        ("twice", "what its experts give is read in several places"),
        ("onto", "what its experts give is not just summed for each token"),
        ("order", "its pairs are not put back in the order of the tokens"),
    ],
)
def test_what_the_operator_does_not_compute_stays(way: str, why: str) -> None:
    with pytest.raises(GatecError, match=re.escape(f"the model stays in standard operators: {why}")):
        merge(program_of(Spelled(way), X[0]))


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        (MLP(F.gelu, False), FOUR, "its activation is none of relu, gelu by tanh, silu and nothing at all"),
        (MLP(F.relu), FOUR, "or with a gate not silu"),
        (MLP(out=8), FOUR, "it takes 16 numbers and gives 8, and the operator gives as many as it takes"),
        (MLP().double(), FOUR, "it computes in torch.float64, and the operator in float32"),
        (MLP(), {**FOUR, "router": "dselect"}, "the weights of its router may be negative"),
    ],
)
def test_converted_mixtures_that_stay(model: nn.Module, options: dict[str, Any], why: str) -> None:
    x = X.to(next(model.parameters()).dtype)
    with pytest.raises(GatecError, match=re.escape(why)):
        merge(program_of(mixture(model, x=x, **options), x))


def test_a_model_without_mixtures_has_nothing_for_the_operator() -> None:
    with pytest.raises(GatecError, match="no grouped products of experts"):
        merge(program_of(MLP()))


def test_one_mixture_is_the_operator_and_the_other_is_not(tmp_path: Path) -> None:
    """The file agrees with PyTorch at three shapes, or export would have raised."""
    got = gatec.export(mixture(Two(), **FOUR), tmp_path / "two.onnx", X, experts="ort")
    assert got.operators["MoE"] == 1 and len(got.parity) == 3
    assert got.notes[0] == "first: onnxruntime's MoE, 4 experts, at most 2 for a token, swiglu"
    assert got.notes[1].startswith("second stays in standard operators: its activation is none of relu")
    assert got.notes[2] == "routing runs sparse: each expert of 2 grouped products sees its tokens only"


def test_what_flows_in_is_not_overwritten(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LayerNorm(16), MLP(bias=False), nn.LayerNorm(16))
    got = gatec.export(mixture(model, **FOUR), tmp_path / "inner.onnx", X, experts="ort")
    assert got.operators["MoE"] == 1 and max(row.max_rel for row in got.parity) < 1e-5


def test_tokens_without_an_expert_get_nothing(tmp_path: Path) -> None:
    x = torch.zeros(10, 16)
    for token, pair in enumerate(combinations(range(4), 2)):
        x[token, list(pair)] = 9.0
    model = mixture(MLP(F.relu, False), x=x, experts=4, top_k=1, router="expert_choice")
    with torch.no_grad():
        model.router.score.weight.copy_(torch.eye(4, 16))
        assert not model.router(x)[6:].any() and model.router(x)[:6].any(1).all()
    got = gatec.export(model, tmp_path / "choice.onnx", x, experts="ort")
    assert got.operators["MoE"] == 1 and got.parity[0].max_rel < 1e-5


def test_the_standard_operators_are_the_default(tmp_path: Path) -> None:
    model = mixture(MLP(), **FOUR)
    assert "MoE" not in gatec.export(model, tmp_path / "plain.onnx", X).operators
    with pytest.raises(GatecError, match="experts as one of standard, ort"):
        gatec.export(model, tmp_path / "plain.onnx", X, experts="own")


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda x: x.exp() * x.sigmoid().topk(2, -1).values.flatten()[:4], True),
        (lambda x: torch.where(x > 0, x.abs(), 0.0) / x.softmax(-1).sum(-1, keepdim=True), True),
        (lambda x: x.clamp(min=0.5) + (x - x.detach()), True),
        (lambda x: torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0), True),
        (lambda x: x.new_full((4, 4), 2.0), True),
        (lambda x: x.softmax(-1) - 0.1, False),
        (lambda x: x.clamp(max=0.5), False),
        (lambda x: torch.where(x > 0, x, x.abs()), False),
        (lambda x: torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), -1.0), False),
        (lambda x: x.new_full((4, 4), -2.0), False),
        (lambda x: x, False),
    ],
)  # fmt: skip
def test_signs(function: Any, known: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return (function(x), None)

    program = torch.export.export(Model(), (torch.randn(4, 4),))
    assert nonnegative(program.graph.output_node().args[0][0]) is known
