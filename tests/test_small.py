"""The small language model, the ways of others to run a part of it, and the recipe that wins back what routing lost."""

import importlib.util
from pathlib import Path

import pytest
import torch

from gatec.bench.small import peers
from gatec.bench.small import quality as bench
from gatec.bench.small.model import LanguageModel
from gatec.bench.small.peers import PEERS, inputs_of, replaced
from gatec.bench.small.text import standard_library

RECIPE = Path(__file__).parent.parent / "examples" / "recover_moe.py"


@pytest.fixture(scope="module")
def text():
    return standard_library(60_000)


def test_batches_are_text_and_the_same_every_time(text):
    one, other = (list(text.batches(2, batch=3, length=8, seed=5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) and one[0].shape == (3, 9)
    assert len(text.train) + len(text.held_out) == 60_000
    assert b"def " in bytes(text.train.tolist())


@pytest.mark.parametrize("kind", ["relu", "swiglu"])
@pytest.mark.parametrize("way", PEERS)
def test_every_way_is_the_dense_model_with_all_experts_on_and_runs_its_share_with_fewer(way, kind, text, monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 20)
    torch.manual_seed(0)
    model = LanguageModel(kind).eval()
    tokens = [t[:, :-1] for t in text.batches(1, batch=4, length=32, seed=0)]
    inputs = inputs_of(model, tokens)
    with torch.no_grad():
        whole = replaced(model, PEERS[way], inputs, 16, 16)(tokens[0])
        torch.testing.assert_close(whole, model(tokens[0]), rtol=1e-4, atol=1e-4)
    loss, active = bench.measured(replaced(model, PEERS[way], inputs, 16, 4), text, 1)
    assert active == pytest.approx(0.25) and 0 < loss < 10


@pytest.mark.sweep
def test_the_recipe_runs(text):
    found = importlib.util.spec_from_file_location("recover_moe", RECIPE)
    recipe = importlib.util.module_from_spec(found)
    found.loader.exec_module(recipe)
    hidden = torch.tensor([[1.0, -1, 1, 1], [0, 0, 3, 0]])
    torch.testing.assert_close(recipe.square_hoyer(hidden), torch.tensor((1 + 1 / 4) / 2))
    losses = recipe.main(20, 10, text, held_out=2)
    assert list(losses) == ["dense", "converted", "sparsified", "and split", "distilled", "fine-tuned"]
    assert losses["fine-tuned"] < losses["distilled"] and losses["fine-tuned"] < losses["dense"]
