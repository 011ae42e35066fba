"""merge(): what constant gates have learned becomes part of the weights; the others are left, with the reason."""

import pytest
import torch
from test_gates import PUT, built, converted, state
from torch import nn

import gatec
from gatec.zoo import load

X = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(5, 8)
CONSTANT = [p for p in PUT if p.values[0].merge is not None]


def mlp(last=()):
    layers = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), *last
    return nn.Sequential(*layers).double()


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(8).double(), branch

    def forward(self, x):
        return x + self.branch(self.norm(x))


def trained(model):
    """Gates somewhere else, in such a way that they are constants still."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if any(p is g for g in gatec.gate_parameters(model)) and not name.endswith("weight"):
            p.data.add_(torch.randn_like(p) * 0.4)
    return model


def verdicts(model):
    return {e.site: (e.verdict, e.why) for e in gatec.report(model).edits}


@pytest.mark.parametrize("gate, case", CONSTANT)
def test_a_constant_gate_is_folded_or_left_in_words(gate, case):
    model, inputs = built(case, torch.float64)
    gated = trained(converted(gate, case, model, inputs))
    before = state(gated)[0]
    try:
        merged = gatec.merge(gated, inputs)
    except gatec.GatecError as e:
        assert "is closed" in str(e) or "no linear layer" in str(e) or "ends in no layer" in str(e)
        return
    torch.testing.assert_close(merged(*inputs), gated(*inputs), rtol=1e-12, atol=1e-12)
    gone = [e for e in gatec.report(merged).edits if e.verdict == "put"]
    assert len(gatec.gate_parameters(merged)) < len(gatec.gate_parameters(gated)) and gone
    assert all(torch.equal(v, before[n]) for n, v in gated.state_dict().items())
    if len(gone) == case.put:
        assert {n: v.shape for n, v in merged.state_dict().items()} == {
            n: v.shape for n, v in model.state_dict().items()
        }


@pytest.mark.parametrize("branch", [
    mlp, lambda: mlp([nn.Dropout(0.1)]), lambda: mlp([nn.LayerNorm(8)]), lambda: nn.Linear(8, 8).double(),
], ids=["mlp", "dropout", "norm", "linear"])  # fmt: skip
@pytest.mark.parametrize("scale", ["scalar", "channel"])
def test_a_branch_takes_its_scale_where_it_ends(branch, scale):
    model = nn.Sequential(Residual(branch()), Residual(branch())).eval()
    gated = trained(gatec.convert(model, "residual", scale=scale, inputs=X))
    merged = gatec.merge(gated, X)
    torch.testing.assert_close(merged(X), gated(X), rtol=1e-12, atol=1e-12)
    assert type(merged[0]) is Residual and list(merged.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("spec, passes", [
    ("transformers:llama", "residual(scale=channel),prune"), ("transformers:gpt2", "residual,wrap(form=one-plus)"),
])  # fmt: skip
def test_the_models_of_other_people(spec, passes):
    gated = trained(gatec.convert(load(spec), passes))
    merged = gatec.merge(gated)
    ids = torch.randint(5, 200, (2, 6))
    torch.testing.assert_close(merged(ids).logits, gated(ids).logits, rtol=1e-4, atol=1e-4)
    left = {site: why for site, (verdict, why) in verdicts(merged).items() if verdict == "left"}
    assert left == ({"lm_head": "transformer.wte.weight is shared with lm_head.weight"} if "wrap" in passes else {})
    gates = merged.state_dict().keys() - load(spec).state_dict().keys()
    assert gates == {f"{site}.feature_gate" for site in left}


def test_what_depends_on_the_input_is_left_and_says_so(tmp_path):
    def model():
        return nn.Sequential(Residual(nn.Linear(8, 8).double()), Residual(mlp()))

    gated = trained(gatec.convert(model(), "residual,moe(experts=4,top_k=2)", inputs=X))
    merged = gatec.merge(gated, X)
    left = {site: why for site, (verdict, why) in verdicts(merged).items() if verdict == "left"}
    assert left.keys() == {"1.branch", "1.branch.2"} and left["1.branch.2"] == "moe depends on the input"
    assert left["1.branch"].startswith("1.branch ends in no layer that could be scaled, but in ")
    torch.testing.assert_close(merged(X), gated(X), rtol=1e-12, atol=1e-12)
    again = gatec.load(gatec.save(merged, tmp_path), model(), inputs=X)
    assert torch.equal(again(X), merged(X))
    moved = gatec.convert(mlp(), "glu", inputs=X)
    nn.init.normal_(moved[0].value.weight)
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: a gate that can be folded into weights\n  found 2: its gate depends"
    ):
        gatec.merge(moved, X)


def test_closed_blocks_shared_weights_and_plain_models_are_refused_in_words():
    with pytest.raises(gatec.GatecError, match=r"^gatec: a model with gates\n  found none in Sequential"):
        gatec.merge(mlp(), X)
    skipping = gatec.convert(nn.Sequential(Residual(mlp()), Residual(mlp())), "skip", inputs=X)
    skipping[0].gate.data.zero_()
    merged = gatec.merge(skipping, X)
    assert verdicts(merged)["0"] == ("left", "it is closed: its block is skipped, which no weight of it can say")
    assert verdicts(merged)["1"][0] == "put"
    tied = Residual(mlp())
    tied.again = nn.Linear(16, 8).double()
    tied.again.weight = tied.branch[2].weight
    with pytest.raises(gatec.GatecError, match=r"is shared with"):
        gatec.merge(trained(gatec.convert(tied, "residual", inputs=X)), X)
