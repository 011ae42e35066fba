"""The sweep itself: what it says of a module is true, nothing ends it, and other people's models give no wrong result."""

import os
import re
import time
from types import SimpleNamespace

import pytest
import torch
from sampled import some
from torch import nn

from gatec.bench.coverage import OURS, compact, coverage, pool, summary, wrongs
from gatec.bench.coverage import judge as bench
from gatec.bench.coverage.category import CATEGORIES, category
from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.judge import HELD, OTHERS, judge
from gatec.bench.coverage.peers import PEERS, ask
from gatec.bench.coverage.same import same
from gatec.bench.coverage.suites import entries
from gatec.bench.coverage.variants import batches, lengths
from gatec.bench.coverage.work import work
from gatec.program import Program

FAST = [
    "plain:WaveNet",
    "plain:MiniGPT",
    "plain:TokenMoE",
    "plain:DLRM",
    "transformers:llama",
    "timm:mixer_s32_224",
    "diffusers:UNet2DModel",
]
SLOW = [
    *(f"transformers:{kind}" for kind in ("bert", "gpt2", "t5", "mixtral", "qwen3_moe", "mamba", "vit", "convnext",
    "clip", "wav2vec2-conformer",
                                          "informer", "deberta-v2", "switch_transformers", "whisper")),
    *(f"timm:{name}" for name in ("efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto", "resnet10t")),
    *(f"diffusers:{name}" for name in ("UNet2DConditionModel", "DiTTransformer2DModel", "AutoencoderKL")),
    *(f"recommenders:{name}" for name in ("torchfm.DeepFM", "rechub.MMOE")),
]  # fmt: skip


def rows_of(spec):
    suite = spec.partition(":")[0]
    if spec not in entries():
        pytest.skip(f"no package of the suite {suite} is installed, or it has no {spec}")
    row = work((spec, OURS))
    return [{"model": spec, "suite": suite, "family": spec, **row}]


def holds(rows):
    """The laws of every row: a verdict, no result but the module's own, and a reason for every refusal."""
    for row in rows:
        assert row["status"] in ("whole", "by module"), row
        assert list(wrongs(rows)) == []
        for kind in row["classes"]:
            assert kind["captured"] or re.search(r"\w+ \w+", kind["reason"]), kind
            for name, word in kind.get("calls", {}).items():
                assert name in ("base", *OTHERS)
                assert word in HELD or word.startswith("fell back: "), kind


@pytest.mark.parametrize("spec", some(FAST, of=2))
@pytest.mark.filterwarnings("ignore")
def test_nothing_wrong_and_nothing_unexplained(spec):
    holds(rows_of(spec))


@pytest.mark.sweep
@pytest.mark.parametrize("spec", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_nothing_wrong_and_nothing_unexplained_in_many_families(spec):
    holds(rows_of(spec))


def test_every_suite_whose_package_is_there_has_its_families():
    counts = {
        suite: len({e.family for e in entries().values() if e.suite == suite}) for suite in ("transformers", "timm")
    }
    assert counts["transformers"] == 0 or counts["transformers"] >= 80
    assert counts["timm"] == 0 or counts["timm"] >= 100


class Scaled(nn.Module):
    """Reads its own attribute, which a test changes behind capture's back."""

    def __init__(self):
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), 2.0

    def forward(self, x):
        return self.linear(x) * self.factor


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Asker(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = Asking(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.inner(x))


def test_a_captured_module_is_held_for_batch_length_train_and_dtype():
    found = judge(Scaled().eval(), ((torch.randn(2, 3, 4),), {}))
    assert found["status"] == "whole"
    (kind,) = found["classes"]
    assert kind["captured"] and kind["exact"] == ""
    assert kind["calls"] == {
        "base": "new graph",
        "batch": "same graph",
        "length": "same graph",
        "train": "new graph",
        "dtype": "new graph",
    }


def test_a_refused_module_stands_with_its_reason():
    found = judge(Asker().eval(), ((torch.randn(2, 4),), {}))
    assert found["status"] == "by module" and found["refused"] == 1
    refused = [kind for kind in found["classes"] if not kind["captured"]]
    assert [kind["class"] for kind in refused] == ["Asking"]
    assert "depends on data" in refused[0]["reason"]


def test_a_wrong_graph_is_called_wrong(monkeypatch):
    """A capture that forgets a factor: the judge must not believe it."""
    true = bench.compiled

    def lying(graph):
        run = true(graph).run
        return SimpleNamespace(run=lambda module, *leaves: run(module, *leaves) + 1e-6)

    monkeypatch.setattr(bench, "compiled", lying)
    found = judge(Scaled().eval(), ((torch.randn(2, 3, 4),), {}))
    row = {"model": "x", "suite": "s", "family": "f", **found}
    assert [line.split("  ")[:3] for line in wrongs([row])] == [["x", "Scaled", "recorded"]]


def crash_or_sleep(task):
    if task == "crash":
        os._exit(3)
    if task == "spin":
        while time.time():
            pass
    return {"status": task}


def test_a_hang_and_a_crash_are_answers_and_not_the_end():
    answers = dict(pool.answers(crash_or_sleep, ["a", "crash", "spin", "b"], jobs=2, limit=1.0))
    assert answers == {
        "a": {"status": "a"},
        "b": {"status": "b"},
        "crash": "its process ended with code 3",
        "spin": "took more than 1 s",
    }


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_peers_are_asked_for_the_same_bits(peer):
    answer = ask(peer, Scaled().eval(), ((torch.randn(2, 4),), {}))
    assert answer["status"] == "whole" and answer["seconds"] >= 0
    refused = ask(peer, Asker().eval(), ((torch.randn(2, 4),), {}))
    assert refused["status"] == ("parts" if peer == "dynamo" else "refused")
    assert peer == "dynamo" or ": " in refused["reason"]


@pytest.mark.filterwarnings("ignore")
def test_the_whole_sweep_in_small_ends_in_tables():
    told = []
    rows = coverage(
        "plain:(VAE|GraphNetwork)$", peers=True, jobs=1, progress=lambda row, who: told.append((row["model"], who))
    )
    assert sorted(told) == sorted((f"plain:{m}", who) for m in ("VAE", "GraphNetwork") for who in (OURS, *PEERS))
    suites, categories, calls = summary(rows)
    assert suites[-1][:4] == ["all", "2", "2", "2"]
    assert [line[0] for line in categories[1:]] == [*CATEGORIES, "the first seven"]
    assert [line[0] for line in calls[1:]] == ["base", *OTHERS]
    assert all(isinstance(row["classes"], dict) for row in compact(rows))


@pytest.mark.parametrize(("name", "kind"), [
    ("LlamaMLP", "mlp"), ("SwiGLUFFN", "mlp"), ("MixtralSparseMoeBlock", "mlp"), ("BertIntermediate", "mlp"),
     ("SwinLayer", "block"),
    ("LlamaAttention", "attention"), ("MultiheadAttention", "attention"), ("LlamaDecoderLayer", "block"),
     ("BasicBlock", "block"),
    ("MixtralTopKRouter", "router"), ("SqueezeExcite", "se"), ("SEModule", "se"), ("ConvNormAct", "conv"),
     ("PatchEmbed", "conv"),
    ("MambaMixer", "recurrent"), ("LSTMCellByHand", "recurrent"), ("LlamaRMSNorm", "norm"), ("LayerNorm2d", "norm"),
     ("Thing", "other"),
])  # fmt: skip
def test_the_name_of_a_class_says_what_it_is(name, kind):
    assert category(type(name, (nn.Module,), {})(), "a.path") == kind


def test_sameness_is_of_bits_classes_and_contents():
    nan = torch.tensor([float("nan"), 1.0])
    assert same({"a": (nan, 1)}, {"a": (nan.clone(), 1)})
    assert not same((nan,), [nan.clone()])
    assert not same(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert not same(torch.ones(2), torch.ones(2) + 1e-7)
    assert not same(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_modules_with_a_computed_weight_are_copied():
    layer = nn.utils.weight_norm(nn.Linear(4, 4))
    layer(torch.randn(2, 4))
    assert same(copied(layer)(torch.ones(1, 4)), layer(torch.ones(1, 4)))


def test_other_calls_change_what_they_say():
    inputs = (torch.zeros(2, 3, 8, 8),), {"ids": torch.zeros(2, 7, dtype=torch.long)}
    (taller,) = list(batches(inputs))
    assert taller[0][0].shape == (3, 3, 8, 8) and taller[1]["ids"].shape == (3, 7)
    larger = next(lengths(inputs))
    assert larger[0][0].shape == (2, 3, 16, 16)
    longer = [call[1]["ids"].shape for call in lengths(((), {"ids": inputs[1]["ids"]}))]
    assert longer[0] == (2, 10)


def test_a_model_that_capture_leaves_different_is_called_wrong(monkeypatch):
    """A capture that forgets to put an attribute back: the model's next call is not its own."""
    true = Program.graph_of

    def littering(program, path):
        program.model.factor = 3.0
        return true(program, path)

    monkeypatch.setattr(Program, "graph_of", littering)
    row = {"model": "x", "suite": "s", "family": "f", **judge(Scaled().eval(), ((torch.randn(2, 4),), {}))}
    assert [line.split("  ")[:3] for line in wrongs([row])][:1] == [["x", "(model)", "after capture"]]
