"""What a report says of costs, and how it says it: text, JSON, a page that loads and runs nothing."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import gatec

X = torch.linspace(-2, 2, 40).reshape(5, 8)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)
    )


def mixture():
    return gatec.convert(mlp(), "moe", experts=4, top_k=1, inputs=X, only="^2$|^6$")


@torch.no_grad()
def loss(model):
    return model(X).square().mean()


def test_costs_are_those_of_the_layers_and_what_was_added():
    one, two = gatec.report(mixture()).layers
    weights, biases, router = 2 * 8 * 16, 16 + 8, 4 * 8
    assert (one.gate, one.site, one.unit, one.experts, one.share) == ("moe", "2", "", 4, 0.25)
    assert (one.parameters, one.added) == (weights + biases + router, router)
    assert one.active == (weights + 16) // 4 + 8 + router
    assert one.flops == 2 * (weights // 4 + router)
    assert two.site == "6" and two.parameters == one.parameters
    text = str(gatec.report(mixture()))
    assert "4 experts, 25% of its hidden layer for a token: 108 of 312 parameters, 192 flop per token" in text


@pytest.mark.parametrize("shards", [1, 2])
def test_copies_count_as_often_as_they_are(shards):
    model = gatec.convert(mlp(), "upcycle", experts=4, top_k=2, shards=shards, inputs=X, only="^2$")
    (cost,) = gatec.report(model).layers
    weights, router = 2 * 8 * 16, 4 * shards * 8
    assert (cost.experts, cost.share, cost.added) == (4 * shards, 0.5, router)
    assert cost.parameters == 4 * (weights + 16) + 8 + router
    assert cost.active == 2 * (weights + 16) + 8 + router and cost.flops == 2 * (2 * weights + router)
    assert sum(gatec.measure(model, X).layers[0].usage) == pytest.approx(1)


def test_gates_that_leave_nothing_out_cost_all_their_layers():
    (glu,) = gatec.report(gatec.convert(mlp(), "glu", inputs=X, only="^2$")).layers
    assert (glu.share, glu.added, glu.active, glu.parameters) == (1.0, 144, 424, 424)
    assert glu.flops == 2 * (2 * 8 * 16 + 8 * 16)
    assert "hidden layer for a token" not in str(gatec.report(gatec.convert(mlp(), "glu", inputs=X)))
    conv = nn.Sequential(nn.Conv1d(5, 6, 3, padding=1))
    (wrap,) = gatec.report(gatec.convert(conv, "wrap", inputs=X[None])).layers
    assert (wrap.added, wrap.parameters, wrap.flops) == (6, 5 * 6 * 3 + 6 + 6, None)


def test_measured_where_it_was_asked_for():
    model = mixture()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    found = gatec.measure(model, X, loss=loss, shares=(0.25, 0.5, 1.0))
    for cost in found.layers:
        assert cost.seconds > 0 and cost.seconds_before > 0 and f"{cost.seconds * 1e3:.3g} ms" in str(found)
        assert len(cost.usage) == 4 and sum(cost.usage) == pytest.approx(1)
    assert [share for share, _ in found.losses] == [0.25, 0.5, 1.0]
    assert found.losses[-1][1] == pytest.approx(float(loss(mlp())), rel=1e-5)
    assert found.losses[0][1] == pytest.approx(float(loss(model)), rel=1e-6)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.top_k == 1 for m in model.modules() if hasattr(m, "top_k"))
    with pytest.raises(gatec.GatecError, match=r"^gatec: routers that choose a number of experts\n  found none in Seq"):
        gatec.measure(gatec.convert(mlp(), "glu", inputs=X), X, loss=loss)


def test_a_model_that_cannot_be_reverted_is_measured_alone():
    gated = gatec.convert(gatec.convert(mlp(), "prune", inputs=X, only="^2$"), "glu", inputs=X, only="^6$")
    gated[0].gate.data[::2] = 0
    found = gatec.measure(gatec.compact(gated, inputs=X), X)
    assert found.layers and all(c.seconds > 0 and c.seconds_before is None for c in found.layers)


def test_json_says_it_all_and_is_json():
    model = gatec.convert(mlp(), "moe(experts=4,top_k=1),prune(),wrap", inputs=X)
    found = json.loads(gatec.measure(model, X, loss=lambda _: float("nan"), shares=[0.5]).json())
    assert found["schema"] == "gatec.report/1" and found["model"] == "Sequential"
    assert found["losses"] == [{"share": 0.5, "loss": "nan"}]
    assert {e["verdict"] for e in found["edits"]} >= {"put", "left"}
    assert [(c["gate"], c["experts"]) for c in found["layers"] if c["gate"] == "moe"] == [("moe", 4)] * 2


def page(report, tmp_path):
    return report.page(tmp_path / "report.html").read_text(encoding="ascii")


def test_the_page_holds_every_edit_and_pictures_of_what_was_measured(tmp_path):
    model = gatec.convert(mlp(), "moe(experts=4,top_k=1),wrap", inputs=X)
    found = gatec.measure(model, X, loss=loss, shares=(0.25, 0.5, 1.0))
    text = page(found, tmp_path)
    assert all(e.site in text and e.why in text for e in found.edits)
    drawn = [ET.fromstring(f"<svg{part.partition('</svg>')[0]}</svg>") for part in text.split("<svg")[1:]]
    usage, curve = drawn
    cells = [r.find("title").text for r in usage.iter("rect")]
    assert cells == [f"{c.site}, expert {e}: {share:.1%} of all choices"
                     for c in found.layers if c.experts for e, share in enumerate(c.usage)]  # fmt: skip
    assert [c.find("title").text for c in curve.iter("circle")] == [
        f"{share:.1%} active: loss {value:.6g}" for share, value in found.losses
    ]
    assert "<svg" not in page(gatec.report(model), tmp_path)


def test_nothing_of_a_model_can_break_the_page(tmp_path):
    evil = '<script>alert("1")</script>&'

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(evil, nn.Linear(8, 8))

        def forward(self, x):
            return getattr(self, evil)(x)

    model = nn.Sequential(Odd(), nn.Linear(8, 8))
    text = page(gatec.report(gatec.convert(model, "wrap", inputs=X)), tmp_path)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
