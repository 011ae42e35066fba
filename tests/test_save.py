"""save() and load(): a folder of a recipe and tensors, replayed on a fresh model; no pickle, no code."""

# ruff: noqa: E501 - one case per line

import json

import pytest
import torch
from torch import nn

import gatec
from gatec.zoo import load


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)
    )


def other():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)
    )


X = torch.linspace(-2, 2, 40).reshape(5, 8)
PASSES = [
    "glu",
    "glu(variant=auto)",
    "prune",
    "moe(experts=4,top_k=4)",
    "moe(experts=4,top_k=2,seed=3)",
    "prune,glu",
    "glu,prune",
]
HOW = {"whole": None, "one site": "^2$"}


def moved(model):
    """As after training: every parameter somewhere else."""
    torch.manual_seed(3)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("only", HOW.values(), ids=[h.replace(" ", "-") for h in HOW])
@pytest.mark.parametrize("passes", PASSES)
def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path, passes, only):
    model = moved(gatec.convert(mlp(), passes, inputs=X, only=only))
    folder = gatec.save(model, tmp_path / "saved")
    base = other()
    before = {n: v.clone() for n, v in base.state_dict().items()}
    again = gatec.load(folder, base, inputs=X)
    assert torch.equal(again(X), model(X))
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, before[n]) for n, v in base.state_dict().items())


@pytest.mark.parametrize("passes", PASSES)
def test_the_folder_holds_a_recipe_and_tensors_and_nothing_else(tmp_path, passes):
    gatec.save(gatec.convert(mlp(), passes, inputs=X), tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.safetensors", "recipe.json"]
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["version"] == 1 and recipe["model"] == "Sequential"
    assert [s["pass"] for s in recipe["steps"]] == [
        p.partition("(")[0] for p in passes.replace("=4,", "=4;").replace("=2,", "=2;").split(",")
    ]
    assert all(b"pickle" not in f.read_bytes() for f in tmp_path.iterdir())


@pytest.mark.parametrize("passes", PASSES)
def test_saving_twice_writes_the_same(tmp_path, passes):
    model = gatec.convert(mlp(), passes, inputs=X)
    one, two = (
        gatec.save(model, tmp_path / "one"),
        gatec.save(gatec.load(tmp_path / "one", other(), inputs=X), tmp_path / "two"),
    )
    for name in ("recipe.json", "model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_conversions_in_a_row_are_replayed_in_a_row(tmp_path):
    model = moved(gatec.convert(gatec.convert(mlp(), "prune", inputs=X, only="^2$"), "glu", inputs=X, only="^6$"))
    again = gatec.load(gatec.save(model, tmp_path), other(), inputs=X)
    assert torch.equal(again(X), model(X))
    assert list(again.state_dict()) == list(model.state_dict())


def test_a_compacted_model_is_saved_small(tmp_path):
    model = gatec.convert(mlp(), "prune", inputs=X)
    for p in gatec.gate_parameters(model):
        p.data[::2] = 0
    small = moved(gatec.compact(model, inputs=X))
    again = gatec.load(gatec.save(small, tmp_path), other(), inputs=X)
    assert torch.equal(again(X), small(X))
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]


def test_a_gate_of_ones_own(tmp_path):
    def hidden(x: torch.Tensor, up: gatec.Linear, act: gatec.Activation, down: gatec.Linear):
        return down(gatec.here(act(up(x))))

    def after(site, here, up):
        return here * site.add("scale", lambda: nn.Parameter(torch.ones(())), near=up)

    gate = gatec.Gate(before=(hidden,), after=after)
    model = moved(gatec.convert(mlp(), gate, inputs=X))
    folder = gatec.save(model, tmp_path)
    assert torch.equal(gatec.load(folder, other(), inputs=X, gates=[gate])(X), model(X))
    with pytest.raises(gatec.GatecError, match=f"^gatec: a pass named '{gate.name}'\n"):
        gatec.load(folder, other(), inputs=X)


def test_dtype_and_training_flag_are_the_fresh_models(tmp_path):
    model = moved(gatec.convert(mlp().bfloat16().eval(), "glu", inputs=X.bfloat16()))
    again = gatec.load(gatec.save(model, tmp_path), other().bfloat16().train(), inputs=X.bfloat16())
    assert torch.equal(again(X.bfloat16()), model(X.bfloat16()))
    assert again.training


@pytest.mark.parametrize("spec, passes", [
    ("transformers:llama", "moe(experts=4,top_k=2)"), ("transformers:gpt2", "glu,prune"), ("transformers:llama?tie_word_embeddings=True", "prune"),
])  # fmt: skip
def test_other_peoples_models(tmp_path, spec, passes):
    model = moved(gatec.convert(load(spec), passes))
    again = gatec.load(gatec.save(model, tmp_path), load(spec))
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(again(ids).logits, model(ids).logits)


# -- what may be wrong with a folder ------------------------------------------------------------------------------------


def edited(change):
    def edit(folder):
        file = folder / "recipe.json"
        recipe = json.loads(file.read_text())
        change(recipe)
        file.write_text(json.dumps(recipe))

    return edit


def step(**more):
    return edited(lambda r: r["steps"][0].update(more))


WRONG = {
    "no folder": (lambda f: [x.unlink() for x in f.iterdir()], "^gatec: a folder that gatec.save wrote\n  found no .*recipe.json\n  try   gatec.save"),
    "no recipe": (lambda f: (f / "recipe.json").unlink(), "^gatec: a folder that gatec.save wrote\n  found no .*recipe.json\n"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "^gatec: a folder that gatec.save wrote\n  found no .*model.safetensors\n"),
    "half a recipe": (lambda f: (f / "recipe.json").write_text('{"version": 1, "steps": ['), "^gatec: a recipe in JSON\n  found .*\n  where .*recipe.json$"),
    "not text": (lambda f: (f / "recipe.json").write_bytes(b"\xff\xfe\x00"), "^gatec: a recipe in JSON\n"),
    "a list": (lambda f: (f / "recipe.json").write_text("[]"), "^gatec: a recipe of version 1\n  found list\n"),
    "another version": (edited(lambda r: r.update(version=99)), "^gatec: a recipe of version 1\n  found version 99\n"),
    "steps that are none": (edited(lambda r: r.update(steps="glu")), "^gatec: a recipe of version 1\n"),
    "a step that is text": (edited(lambda r: r.update(steps=["glu"])), "^gatec: a step of a recipe\n  found str\n"),
    "no steps": (edited(lambda r: r.update(steps=[])), "^gatec: a recipe with steps\n  found none\n"),
    "unknown pass": (step(**{"pass": "os.system"}), "^gatec: a pass named 'os.system'\n"),
    "no pass": (edited(lambda r: r["steps"][0].pop("pass")), "^gatec: a step of a recipe\n  found .*options"),
    "unknown option": (step(options={"command": "rm"}), "^gatec: options that the pass glu knows\n  found command\n"),
    "options that are none": (step(options=3), "^gatec: a step of a recipe\n  found .*'options': 3"),
    "an unknown site": (step(sites=["2", "blocks.9"]), "^gatec: the sites of glu in Sequential\n  found none at blocks.9\n"),
    "a path as a site": (step(sites=["../../etc/passwd"]), "^gatec: the sites of glu in Sequential\n  found none at ../../etc/passwd\n"),
    "sites that are none": (step(sites=7), "^gatec: a step of a recipe\n  found .*'sites': 7"),
    "tensors that are none": (lambda f: (f / "model.safetensors").write_bytes(b"nonsense" * 9), "^gatec: tensors that fit the rewritten model\n"),
    "half the tensors": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:500]), "^gatec: tensors that fit the rewritten model\n"),
    "a compacted site that is not there": (edited(lambda r: r["steps"].append({"compact": ["nowhere"]})), "^gatec: the pruning gates of Sequential that were compacted\n  found none at nowhere\n"),
}  # fmt: skip


@pytest.mark.parametrize("harm, words", WRONG.values(), ids=[w.replace(" ", "-") for w in WRONG])
def test_a_folder_that_is_wrong_is_refused_in_words(tmp_path, harm, words):
    folder = gatec.save(gatec.convert(mlp(), "glu", inputs=X), tmp_path)
    harm(folder)
    base = other()
    before = {n: v.clone() for n, v in base.state_dict().items()}
    with pytest.raises(gatec.GatecError, match=words):
        gatec.load(folder, base, inputs=X)
    assert list(base.state_dict()) == list(before) and all(
        torch.equal(v, before[n]) for n, v in base.state_dict().items()
    )


def test_into_another_model(tmp_path):
    folder = gatec.save(gatec.convert(mlp(), "glu", inputs=X), tmp_path)
    wide = nn.Sequential(
        nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)
    )
    with pytest.raises(
        gatec.GatecError,
        match=r"(?s)^gatec: tensors that fit the rewritten model\n  found .*0.weight.*\n  where .*\n  try   load into a fresh model",
    ):
        gatec.load(folder, wide, inputs=X)
    with pytest.raises(gatec.GatecError, match=r"^gatec: the sites of glu in Sequential\n  found none at "):
        gatec.load(folder, nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), inputs=X)


def test_into_a_model_that_is_converted_already(tmp_path):
    model = gatec.convert(mlp(), "glu", inputs=X)
    with pytest.raises(gatec.GatecError, match=r"^gatec: the sites of glu in Sequential\n"):
        gatec.load(gatec.save(model, tmp_path), model, inputs=X)


def test_a_model_that_was_not_rewritten(tmp_path):
    with pytest.raises(gatec.GatecError, match=r"^gatec: a model that gatec has rewritten\n  found Sequential\n"):
        gatec.save(mlp(), tmp_path / "never")
    assert not (tmp_path / "never").exists()


# -- what a save leaves behind ------------------------------------------------------------------------------------------


def test_large_models_are_saved_in_shards(tmp_path):
    model = moved(gatec.convert(load("transformers:llama?tie_word_embeddings=True"), "moe(experts=4,top_k=2)"))
    gatec.save(model, tmp_path / "whole")
    folder = gatec.save(model, tmp_path / "parts", shard=20_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {f.name for f in shards}
    assert "lm_head.weight" not in index["weight_map"]  # tied to the embedding: written once
    again = gatec.load(folder, load("transformers:llama?tie_word_embeddings=True"))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in again.state_dict().items())
    gatec.save(again, tmp_path / "whole")
    gatec.save(again, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["model.safetensors", "recipe.json"]
    gatec.save(again, tmp_path / "whole", shard=20_000)
    assert not (tmp_path / "whole" / "model.safetensors").exists()
    next((tmp_path / "whole").glob("model-00001*")).unlink()
    with pytest.raises(gatec.GatecError, match=r"^gatec: a folder that gatec.save wrote\n  found no .*model-00001-of-"):
        gatec.load(tmp_path / "whole", load("transformers:llama?tie_word_embeddings=True"))
    (tmp_path / "whole" / "model.safetensors.index.json").write_text('{"weight_map": ["')
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: an index of safetensors files\n  found .*\n  where .*index.json"
    ):
        gatec.load(tmp_path / "whole", load("transformers:llama?tie_word_embeddings=True"))


@pytest.mark.parametrize("at", ["tensors", "recipe"])
def test_an_interrupted_save_leaves_the_earlier_one(tmp_path, monkeypatch, at):
    model = moved(gatec.convert(mlp(), "moe(experts=4,top_k=2)", inputs=X))
    gatec.save(model, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(*(("gatec.storing.save_file", full) if at == "tensors" else ("pathlib.Path.write_text", full)))
    with pytest.raises(OSError, match="No space left"):
        gatec.save(gatec.convert(mlp(), "glu", inputs=X), tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_tensors_of_another_recipe_are_refused(tmp_path):
    one = gatec.save(gatec.convert(mlp(), "moe(experts=4,top_k=2)", inputs=X), tmp_path / "one")
    two = gatec.save(gatec.convert(mlp(), "moe(experts=4,top_k=3)", inputs=X), tmp_path / "two")
    (two / "recipe.json").replace(one / "recipe.json")
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: a recipe and tensors of one save\n  found tensors of another recipe"
    ):
        gatec.load(one, other(), inputs=X)


DATA = [torch.linspace(-1, 2, 48).reshape(6, 8).roll(i, 0) for i in range(3)]
LABELS = torch.arange(16) % 4
SPLITS = {
    "calibrated": {"calibration": DATA},
    "important": {"partition": "importance", "calibration": DATA, "shared": 1},
    "labels": {"partition": LABELS},
    "labels of one site": {"partition": {"2": LABELS}},
    "experts of one site": {"partition": {"2": 8, "6": LABELS}},
}


@pytest.mark.parametrize("how", SPLITS.values(), ids=[h.replace(" ", "-") for h in SPLITS])
def test_data_and_labels_are_in_the_order_of_the_units_and_not_in_the_recipe(tmp_path, how):
    model = gatec.convert(mlp(), "moe", experts=4, top_k=2, inputs=X, **how)
    again = gatec.load(gatec.save(model, tmp_path), other(), inputs=X)
    assert torch.equal(again(X), model(X))
    again.load_state_dict(mlp().state_dict())
    assert torch.equal(again(X), model(X))
    dense = mlp().state_dict()
    assert all(torch.equal(v, dense[n]) for n, v in gatec.revert(again).state_dict().items())
