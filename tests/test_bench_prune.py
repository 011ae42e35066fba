"""`gatec bench prune`: what it says of a model is true, of the peer's too, and it goes on where it was stopped."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from gatec.bench.pruning import OURS, PEER, digits, ours, peer, pruning, speed, summary, wrongs
from gatec.bench.pruning.exact import drift, outputs, shaken
from gatec.bench.pruning.heads import counted, repaired
from gatec.bench.pruning.subjects import subjects
from gatec.bench.pruning.training import Data, accuracy
from gatec.bench.pruning.work import work

pytestmark = pytest.mark.filterwarnings("ignore")

THEIRS = pytest.mark.skipif(not find_spec("torch_pruning"), reason="torch-pruning is not installed")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        h = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(h.mean((2, 3)))


def inputs():
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),), {}


def test_the_sweep_has_the_models_that_it_promises():
    specs = subjects()
    counts = {
        suite: sum(e.suite == suite for e in specs.values())
        for suite in ("transformers", "timm", "torchvision", "more")
    }
    if find_spec("transformers"):
        assert counts["transformers"] == 36
        assert {f"transformers:{n}" for n in ("llama-gqa", "qwen3", "gemma2", "phi3", "gpt_neox", "t5", "whisper")} <= {
            *specs
        }
    if find_spec("timm"):
        assert counts["timm"] == 25 and counts["more"] >= 60
        assert "more:timm:maxvit_rmlp_pico_rw_256" in specs
    if find_spec("torchvision"):
        assert counts["torchvision"] == 66 and "torchvision:shufflenet_v2_x1_0" in specs


def test_a_constant_weight_is_no_longer_constant():
    model = shaken(Small())
    values = [model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var]
    assert all(v.detach().unique().numel() == 8 for v in values)


def test_how_far_two_answers_are_apart():
    a = [torch.tensor([1.0, -4.0])]
    assert drift(a, [torch.tensor([1.0, -3.0])]) == 0.25
    assert drift(a, [torch.ones(3)]) == drift(a, [torch.tensor([torch.nan, 1.0])]) == float("inf")


def test_a_model_is_asked_in_float64_although_it_casts():
    class Casting(nn.Linear):
        def forward(self, x):
            return super().forward(x).float() / 3

    (got,) = outputs(Casting(4, 4).double(), ((torch.randn(2, 4),), {}))
    assert got.dtype == torch.float64 and not torch.equal(got, got.float().double())


def test_a_row_of_a_small_model():
    row = ours.ask(Small().eval(), inputs())
    assert row["status"] == "exact" and row["drift"] <= ours.EXACT
    assert row["closed"] == 7 and row["removed"] == 1 and row["covered"] > 0.9
    assert row["parameters left"] < 0.6


def test_a_wrong_compaction_is_seen(monkeypatch):
    def wrong(model, given):
        small = ours_compact(model, given)
        with torch.no_grad():
            small.head.bias.add_(1e-9)
        return small

    ours_compact = ours.compact
    monkeypatch.setattr(ours, "compact", wrong)
    row = ours.ask(Small().eval(), inputs())
    assert row["status"] == "moved" and row["drift"] > ours.EXACT


def test_closed_slots_that_stay_are_counted_by_reason():
    said = [
        "3 of 4 heads removed; 1 closed ones stay, in zeros: here",
        "2 of 4 heads removed",
        "x; 2 closed ones stay, in zeros: here",
    ]
    assert ours.staying(said) == {"here": 3}


@THEIRS
def test_the_peer_is_compared_with_the_model_that_it_pruned():
    row = peer.ask(Small().eval(), inputs())
    assert row["status"] == "ran" and row["drift"] < 1e-12
    assert 0.2 < row["parameters left"] < 0.6


@THEIRS
def test_what_the_peer_raises_is_its_answer():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), 2, 4, -1).mean((1, 3)))

    row = peer.ask(Halves().eval(), inputs())
    assert row["status"] != "ran" and ("reason" in row or row["status"] == "nothing pruned")


def test_without_the_peer_a_row_says_so(monkeypatch):
    monkeypatch.setattr(peer, "find_spec", lambda _: None)
    assert work(("transformers:llama-gqa", PEER))["status"] == "not installed"


def test_heads_of_projections_and_their_sizes_afterwards():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.num_key_value_heads, self.head_dim = 4, 2, 4
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    model = Attention()
    assert list(counted(model).values()) == [4, 2, 2]
    model.q_proj, model.k_proj, model.v_proj = nn.Linear(16, 8), nn.Linear(16, 4), nn.Linear(16, 4)
    repaired(model, {model.q_proj: 2, model.k_proj: 1, model.v_proj: 1})
    assert (model.num_heads, model.num_key_value_heads, model.head_dim) == (2, 1, 4)


def test_a_sweep_goes_on_from_its_file(tmp_path):
    (spec,) = [s for s in subjects() if s == "more:plain:UNet"]
    file = tmp_path / "answers.jsonl"
    said = {OURS: {"status": "exact", "covered": 1.0, "seconds": 0.5}, PEER: {"status": "ran", "drift": 0.5}}
    file.write_text("".join(json.dumps({"model": spec, "who": w, "answer": a}) + "\n" for w, a in said.items()))
    (row,) = pruning(f"^{spec}$", file=file, jobs=0)
    assert row == {"model": spec, "suite": "more", **said[OURS], "peer": said[PEER]}


def test_the_summary_counts_and_names_what_is_wrong():
    good = {"model": "a:x", "suite": "a", "status": "exact", "covered": 0.99, "removed": 1.0, "seconds": 0.1,
            "peer": {"status": "ran", "drift": 0.1}}  # fmt: skip
    thin = {**good, "model": "a:y", "covered": 0.5, "removed": 0.5, "refused": {"g": "why not"}, "stays": {"a number": 3},
            "peer": {"status": "stopped", "reason": "took more than 60 s"}}  # fmt: skip
    bad = {"model": "b:z", "suite": "b", "status": "raised", "reason": "Boom"}
    lines = summary([good, thin, bad, {"part": "digits"}])
    assert lines[1] == ["a", "2", "2", "1", "1", "0.10", "0.1", "1", "0", "0", "1"]
    assert lines[-1][:5] == ["all", "3", "2", "1", "1"]
    assert list(wrongs([good, thin, bad])) == [
        "a:y  50.0% of the parameters are reached  why not",
        "a:y  50.0% of the closed slots are removed  a number",
        "b:z  raised  Boom",
    ]


def test_the_classifier_has_the_size_that_it_is_said_to_have():
    model = digits.network()
    assert digits.macs(digits.widths_of(model)) == 775_690
    assert sum(p.numel() for p in model.parameters()) == 78_266


def test_gates_are_trained_down_to_a_budget(monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(320, 1, 8, 8, generator=drawn), torch.randint(0, 10, (320,), generator=drawn)
    data = Data(x, y, x, y, drawn)
    torch.manual_seed(0)
    gated, small = digits._ours(digits.network().eval(), data, 210e3, epochs=2)
    assert digits.macs(digits.widths_of(small)) <= 210e3
    assert accuracy(gated, data) == accuracy(small, data)


def test_speed_is_set_beside_the_work_that_is_left():
    wide, narrow = nn.Linear(64, 64), nn.Linear(64, 32)
    (row,) = speed.measured("linear", wide, {OURS: narrow}, ((torch.randn(4, 64),), {}), 1)
    assert row["FLOP ratio"] == 2.0 and row["before ms"] >= 0 and row["speed-up"] > 0


def test_speed_is_taken_in_onnxruntime_too():
    wide, narrow = nn.Linear(64, 64), nn.Linear(64, 32)
    row = speed.exported("linear", wide, narrow, ((torch.randn(4, 64),), {}), 1)
    assert row["tool"] == "gatec, onnxruntime" and row["FLOP ratio"] == 2.0 and row["after ms"] >= 0
