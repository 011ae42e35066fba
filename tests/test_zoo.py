"""Models from one line of text, and every way in which the line can be wrong."""

import importlib.util
import re

import pytest
import torch
from torch import nn

from gatec import zoo
from gatec.errors import GatecError

FILE = """
import torch
from torch import nn
import beside

class Tiny(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(beside.WIDTH, 4), nn.Dropout())

def wide():
    return nn.Linear(8, 4)

ready = nn.Linear(2, 2)
number = 3

def broken():
    raise ValueError("no weights here")

def needs(width):
    return nn.Linear(width, 4)

def inputs():
    return torch.zeros(2, beside.WIDTH)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "models.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("WIDTH = 6")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["Tiny", "wide", "ready"])
def test_a_file_gives_a_class_a_function_or_an_instance(folder, name):
    found = zoo.find(f"models.py:{name}")
    assert isinstance(found.model, nn.Module)
    assert not found.model.training
    assert found.inputs.shape == (2, 6)


def test_random_weights_are_the_same_each_time_and_the_users_randomness_goes_on():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = (zoo.load("transformers:llama").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "spec, kind",
    [
        ("transformers:llama", "LlamaForCausalLM"),
        ("transformers:bert", "BertForMaskedLM"),
        ("transformers:t5", "T5ForConditionalGeneration"),
        ("transformers:whisper", "WhisperForConditionalGeneration"),
        ("transformers:vit", "ViTForImageClassification"),
        ("transformers:deit", "DeiTForImageClassification"),
        ("transformers:clip", "CLIPModel"),
        ("timm:resnet18", "ResNet"),
    ],
)
def test_a_name_gives_the_class_that_people_run(spec, kind):
    assert type(zoo.load(spec)).__name__ == kind


def test_options_reach_the_config():
    config = zoo.load("transformers:llama?num_hidden_layers=3,hidden_size=128").config
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (3, 128, 32)
    assert zoo.load("timm:resnet18?num_classes=5").fc.out_features == 5


def test_a_folder_is_read_with_and_without_weights(tmp_path):
    model = zoo.load("transformers:llama?num_hidden_layers=1")
    model.config.save_pretrained(tmp_path / "config")
    bare = zoo.load(str(tmp_path / "config"))
    assert type(bare) is type(model)
    model.save_pretrained(tmp_path / "full")
    full = zoo.load(str(tmp_path / "full"))
    assert torch.equal(full.lm_head.weight, model.lm_head.weight)


def test_names_are_loadable():
    names = zoo.names()
    assert {"transformers:llama", "timm:resnet50"} <= set(names)


def refuses(spec, words, **options):
    with pytest.raises(GatecError, match=f"^{re.escape(words)}$"):
        zoo.load(spec, **options)


FORMS = "FILE.py:NAME, a transformers folder, transformers:llama or timm:resnet50"
BY_FILE = "gatec: a model as FILE.py:NAME\n  found "
WRONG = {
    "nothing of the kind": (
        "nowhere",
        f"gatec: a model as {FORMS}\n  found 'nowhere', and no such folder\n"
        "  try   gatec scan transformers:llama",
    ),
    "a bare name": (
        "llama",
        f"gatec: a model as {FORMS}\n  found 'llama', and no such folder\n"
        "  try   transformers:llama",
    ),
    "no such file": ("nowhere.py:Tiny", f"{BY_FILE}'nowhere.py', and no such file"),
    "no name": (
        "models.py",
        f"{BY_FILE}'models.py' without a name\n"
        "  try   models.py:NAME, where NAME is a class, a function or a model in it",
    ),
    "no such name": (
        "models.py:Tyni",
        f"{BY_FILE}no 'Tyni' in models.py\n  try   Tiny",
    ),
    "no model": (
        "models.py:number",
        f"{BY_FILE}models.py:number gave a int, which is no torch.nn.Module",
    ),
    "a function that raises": (
        "models.py:broken",
        "gatec: a model from models.py:broken\n  found ValueError: no weights here\n"
        "  try   a class or function that takes no arguments",
    ),
    "a function that wants more": (
        "models.py:needs",
        "gatec: a model from models.py:needs\n  found TypeError: needs() missing 1 required "
        "positional argument: 'width'\n  try   a class or function that takes no arguments",
    ),
    "a folder without a config": (
        "empty",
        "gatec: a transformers folder\n  found empty, which has no config.json\n"
        f"  try   {FORMS}",
    ),
    "an unknown option": (
        "transformers:llama?hidden_sise=64",
        "gatec: an option of transformers:llama\n  found 'hidden_sise', which LlamaConfig does "
        "not have\n  try   hidden_size, hidden_act",
    ),
    "an option without a value": (
        "transformers:llama?hidden_size",
        "gatec: options as NAME=VALUE,NAME=VALUE\n  found 'hidden_size'\n"
        "  try   transformers:llama?num_hidden_layers=4,hidden_size=256",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec, words", WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_answered_in_full_words(folder, spec, words):
    (folder / "empty").mkdir()
    refuses(spec, words)


def test_an_unknown_type_is_answered_with_near_ones():
    count = len([name for name in zoo.names() if name.startswith("transformers:")])
    refuses(
        "transformers:lama",
        f"gatec: a transformers model type\n  found 'lama', which is none of {count}\n"
        "  try   transformers:llama, transformers:mllama, transformers:llama4",
    )


def test_an_unknown_timm_model_is_answered_with_near_ones():
    with pytest.raises(GatecError, match=r"^gatec: a timm model\n  found 'resnet5O', which is"):
        zoo.load("timm:resnet5O")


def test_sizes_that_do_not_fit_are_said_by_the_library_that_knows():
    with pytest.raises(GatecError, match=r"^gatec: a small transformers:bert\n  found ValueError"):
        zoo.load("transformers:bert?hidden_size=65")


def test_options_that_timm_does_not_know_are_said_by_timm():
    with pytest.raises(GatecError, match=r"^gatec: timm:resnet18\?depth=3\n  found TypeError: "):
        zoo.load("timm:resnet18?depth=3")


def test_a_broken_config_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing known"}')
    words = rf"^gatec: a transformers model in {re.escape(str(tmp_path))}\n  found ValueError: "
    with pytest.raises(GatecError, match=words):
        zoo.load(str(tmp_path))


def test_code_that_does_not_run_is_said_with_its_line(folder):
    (folder / "models.py").write_text("x = 1\nimport nowhere_at_all\n")
    refuses(
        "models.py:Tiny",
        "gatec: a model from models.py\n"
        "  found ModuleNotFoundError: No module named 'nowhere_at_all'\n"
        f"  where {folder / 'models.py'}:2",
    )


def test_a_missing_package_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    refuses(
        "timm:resnet18",
        "gatec: timm models\n  found no package timm in this Python\n  try   pip install timm",
    )
    assert not [name for name in zoo.names() if name.startswith("timm:")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_cuda_without_cuda():
    refuses(
        "transformers:llama",
        f"gatec: a model on cuda\n  found PyTorch {torch.__version__}, which sees no CUDA device here\n  try   cpu",
        device="cuda",
    )


def test_a_device_that_is_none():
    words = "gatec: a device\n  found 'gpu'\n  try   cpu, cuda or cuda:0"
    refuses("transformers:llama", words, device="gpu")


def test_inputs_of_a_file_may_ask_for_a_batch_and_a_length(tmp_path):
    file = tmp_path / "block.py"
    given = "import torch\nmodule = torch.nn.Linear(4, 4)\ndef inputs({}):\n    return torch.zeros(batch, length, 4)\n"
    file.write_text(given.format("batch, length"))
    assert zoo.find(f"{file}:module").inputs.shape == (2, 6, 4)
    file.write_text(given.format("batch, length, pixels"))
    with pytest.raises(GatecError, match="nothing but a batch and a length"):
        zoo.find(f"{file}:module")
