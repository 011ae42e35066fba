"""compact(): without the units whose gate is closed, and equal to the gated model."""

# ruff: noqa: E501 - one case per line

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import gatec
from gatec.verify import distance
from gatec.zoo import load


class Gated(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16, bias=bias), nn.Linear(8, 16, bias=bias)
        self.down_proj = nn.Linear(16, 8, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Packed(nn.Module):
    def __init__(self, cut="chunk"):
        super().__init__()
        self.gate_up, self.down, self.cut = nn.Linear(8, 32), nn.Linear(16, 8), cut

    def forward(self, x):
        both = self.gate_up(x)
        if self.cut == "chunk":
            a, b = both.chunk(2, -1)
        elif self.cut == "split":
            a, b = both.split(both.shape[-1] // 2, -1)
        else:
            a, b = both[..., ::2], both[..., 1::2]
        return self.down(F.silu(a) * b)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(16, 8), Conv1D(8, 16)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


def mlp(**options):
    return nn.Sequential(nn.Linear(8, 16, **options), nn.GELU(), nn.Linear(16, 8, **options))


KINDS = {
    "dense": mlp,
    "dense without bias": lambda: mlp(bias=False),
    "three in a row": lambda: nn.Sequential(mlp(), mlp(), mlp()),
    "a flat row": lambda: nn.Sequential(*mlp(), nn.ReLU(), *mlp(), nn.Tanh(), *mlp()),
    "with dropout": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8)),
    "gated": Gated,
    "gated without bias": lambda: Gated(False),
    "packed": Packed,
    "packed, split": lambda: Packed("split"),
    "packed, interleaved": lambda: Packed("interleaved"),
    "Conv1D": Transposed,
}
KIND = pytest.mark.parametrize("build", KINDS.values(), ids=[k.replace(" ", "-") for k in KINDS])
X = torch.linspace(-2, 2, 40).reshape(5, 8).double()


def gated(build, share=0.5, seed=0):
    """A pruned model in float64 whose gates are random; `share` of them closed."""
    torch.manual_seed(seed)
    model = gatec.convert(build().double().eval(), "prune", inputs=X)
    for p in gatec.gate_parameters(model):
        p.data.copy_((torch.rand_like(p) >= share).to(p) * 0.4 + 0.3)
    return model


def put(model):
    return [e for e in gatec.report(model).edits if e.verdict == "put"]


@pytest.mark.parametrize("seed", range(3))
@KIND
def test_compacted_equals_gated(build, seed):
    model = gated(build, seed=seed)
    small = gatec.compact(model, inputs=X)
    assert distance(small(X), model(X)) <= 1e-12
    assert all(e.drift <= 1e-12 for e in put(small))
    for other in (X[:1], X[None], torch.cat([X, X])):
        assert distance(small(other), model(other)) <= 1e-12


@KIND
def test_what_is_left_is_smaller_and_has_no_gates(build):
    model = gated(build)
    closed = sum(int((p < 0.5).sum()) for p in gatec.gate_parameters(model))
    small = gatec.compact(model, inputs=X)
    assert gatec.gate_parameters(small) == []
    assert list(small.state_dict()) == list(build().state_dict())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in build().parameters())
    assert sum(int(e.why.split()[0]) for e in put(small)) == closed
    assert type(small) is type(build())


@KIND
def test_sizes_are_true(build):
    for layer in gatec.compact(gated(build), inputs=X).modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
            assert layer.bias is None or layer.bias.shape == (layer.out_features,)
        if isinstance(layer, Conv1D):
            assert layer.weight.shape == (layer.nx, layer.nf) and layer.bias.shape == (layer.nf,)


@KIND
def test_the_gated_model_is_untouched(build):
    model = gated(build)
    before, y = {n: v.clone() for n, v in model.state_dict().items()}, model(X)
    gatec.compact(model, inputs=X)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(model(X), y)


@KIND
def test_compacting_twice_is_compacting_once(build):
    small = gatec.compact(gated(build), inputs=X)
    again = gatec.compact(small, inputs=X)
    assert again is not small and torch.equal(again(X), small(X))
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in small.state_dict().items()}


@KIND
def test_a_compacted_model_can_be_converted_again(build):
    small = gatec.compact(gated(build), inputs=X)
    again = gatec.convert(small, "prune", inputs=X)
    assert torch.equal(again(X), small(X))
    assert distance(gatec.compact(again, inputs=X)(X), small(X)) <= 1e-12


@KIND
def test_a_compacted_model_learns(build):
    small = gatec.compact(gated(build), inputs=X)
    small(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@KIND
def test_all_open_takes_nothing(build):
    model = gated(build, share=0)
    small = gatec.compact(model, inputs=X)
    assert [p.shape for p in small.parameters()] == [p.shape for p in build().parameters()]
    assert torch.equal(small(X), model(X))


@KIND
def test_all_closed_leaves_the_bias_or_says_why(build):
    model = gated(build, share=1)
    try:
        small = gatec.compact(model, inputs=X)
    except gatec.GatecError as e:
        assert str(e).startswith("gatec: a unit that can be compacted\n  found ") and len(str(e).splitlines()) >= 2
    else:
        assert distance(small(X), model(X)) <= 1e-12


@pytest.mark.parametrize("value, kept", [(0.5, True), (0.4999, False), (1e30, True), (-3.0, False)])
def test_a_half_is_open(value, kept):
    model = gatec.convert(mlp().double(), "prune", inputs=X)
    gatec.gate_parameters(model)[0].data[3] = value
    small = gatec.compact(model, inputs=X)
    assert small[0].out_features == 16 - (not kept)
    assert distance(small(X), model(X)) <= 1e-12


def test_training_closes_units_that_are_not_needed():
    """The whole story: a penalty on the gates, then compact."""
    torch.manual_seed(0)
    model = gatec.convert(mlp().double(), "prune", inputs=X)
    wanted = torch.tanh(X)
    group = gatec.gate_parameters(model)
    gates, rest = {id(p) for p in group}, list(model.parameters())
    optimizer = torch.optim.Adam(
        [{"params": group, "lr": 0.02}, {"params": [p for p in rest if id(p) not in gates], "lr": 0.01}]
    )
    for _ in range(60):
        optimizer.zero_grad()
        (F.mse_loss(model(X), wanted) + 0.02 * group[0].sum()).backward()
        optimizer.step()
    small = gatec.compact(model, inputs=X)
    assert small[0].out_features < 16
    assert distance(small(X), model(X)) <= 1e-12


def test_a_model_without_gates():
    with pytest.raises(
        gatec.GatecError,
        match=r'^gatec: a model with pruning gates\n  found none in Sequential\n  try   gatec.convert\(model, "prune"\)$',
    ):
        gatec.compact(mlp(), inputs=X)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Gated(), Gated()
        self.two.down_proj.weight = self.one.down_proj.weight

    def forward(self, x):
        return self.one(x) + self.two(x)


def test_tied_weights_are_left_in_words():
    model = gated(Tied)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    words = "^gatec: a unit that can be compacted\n  found one: down_proj.weight is shared with|one.down_proj.weight is shared with two.down_proj.weight"
    with pytest.raises(gatec.GatecError, match=words):
        gatec.compact(model, inputs=X)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_one_unit_is_left_and_the_other_compacted():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.tied, self.free = Tied(), Gated()

        def forward(self, x):
            return self.free(self.tied(x))

    model = gated(Both)
    small = gatec.compact(model, inputs=X)
    assert [e.site for e in put(small)] == ["free"]
    assert len(gatec.gate_parameters(small)) == 2
    assert distance(small(X), model(X)) <= 1e-12


@pytest.mark.parametrize("second", ["glu", "moe(experts=4,top_k=4)"])
def test_other_gates_on_the_same_layers(second):
    """Either it is done right or it is refused in words."""
    for passes in (f"prune,{second}", f"{second},prune"):
        model = gatec.convert(mlp().double(), passes, inputs=X)
        if not [e for e in put(model) if e.gate == "prune"]:
            continue
        gate = next(p for n, p in model.named_parameters() if n.endswith("gate"))
        gate.data[::3] = 0
        try:
            small = gatec.compact(model, inputs=X)
        except gatec.GatecError as e:
            assert "put on the same hidden layer" in str(e) or "would differ" in str(e)
        else:
            assert distance(small(X), model(X)) <= 1e-12


@pytest.mark.parametrize("spec", ["transformers:llama", "transformers:gpt2", "transformers:phi3"])
def test_other_peoples_models(spec):
    model = load(spec).double()
    pruned = gatec.convert(model, "prune")
    torch.manual_seed(0)
    for p in gatec.gate_parameters(pruned):
        p.data.copy_(torch.rand_like(p))
    small = gatec.compact(pruned)
    ids = torch.randint(5, 200, (2, 6))
    assert distance(small(ids).logits, pruned(ids).logits) <= 1e-12
    assert list(small.state_dict()) == list(model.state_dict()) and type(small) is type(model)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **options), pruned.generate(ids, **options))
