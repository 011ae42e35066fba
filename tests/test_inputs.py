"""Example inputs: what models say that they eat, and what a user may give."""

import collections
import re

import pytest
import torch
from torch import nn

from gatec.errors import GatecError
from gatec.inputs import example_inputs
from gatec.zoo import load

X = torch.randn(2, 3)
Batch = collections.UserDict  # what a tokenizer's BatchEncoding is


@pytest.mark.parametrize(
    "given, args, kwargs",
    [
        (X, (X,), {}),
        ((X,), (X,), {}),
        ([X, X], (X, X), {}),
        ({"x": X}, (), {"x": X}),
        (Batch({"x": X}), (), {"x": X}),
        (((X,), {"mask": X}), (X,), {"mask": X}),
        ((X, {"nested": X}), (X, {"nested": X}), {}),
        ((), (), {}),
    ],
    ids=["tensor", "tuple", "list", "dict", "batch", "both", "dict as argument", "nothing"],
)
def test_given_inputs_are_put_in_order(given, args, kwargs):
    made, keywords = example_inputs(nn.Identity(), given)
    assert made == args or all(a is b for a, b in zip(made, args, strict=True))
    assert keywords.keys() == kwargs.keys()
    assert all(keywords[name] is kwargs[name] for name in kwargs)


def test_given_inputs_survive_a_second_time():
    once = example_inputs(nn.Identity(), {"x": X})
    assert example_inputs(nn.Identity(), once) == once


MODELS = [
    "transformers:llama", "transformers:mistral", "transformers:qwen3", "transformers:gemma2",
    "transformers:gpt2", "transformers:bert", "transformers:t5?feed_forward_proj='gated-gelu'",
    "transformers:phi3", "transformers:vit", "transformers:dinov2?use_swiglu_ffn=True",
    "transformers:efficientnet", "transformers:whisper", "transformers:wav2vec2",
    "transformers:clip", "transformers:bart", "transformers:mixtral", "transformers:deepseek_v3",
    "timm:efficientnet_b0", "timm:resnet18", "timm:vit_tiny_patch16_224?img_size=64,in_chans=1",
]  # fmt: skip


@pytest.mark.parametrize("spec", MODELS)
def test_models_run_on_what_they_say_they_eat(spec):
    model = load(spec)
    before = torch.random.get_rng_state()
    args, kwargs = example_inputs(model)
    assert torch.equal(before, torch.random.get_rng_state())
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    assert all(len(t) == 2 for t in tensors)
    with torch.no_grad():
        model(*args, **kwargs)


def test_inputs_are_the_same_each_time():
    model = load("transformers:llama")
    (_, first), (_, second) = example_inputs(model), example_inputs(model)
    assert first["use_cache"] is second["use_cache"] is False
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].shape == (2, 7)


def test_tokens_with_a_meaning_are_avoided():
    model = load("transformers:llama?vocab_size=8,pad_token_id=3")
    ids = set(example_inputs(model)[1]["input_ids"].flatten().tolist())
    assert ids <= {0, 4, 5, 6, 7}  # 1 and 2 begin and end a text


class Heads(nn.Module):
    """Wants [batch, length, width], which its leading Linear alone does not say."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x, scale=1.0):
        batch, length, width = x.shape
        return self.mix(x).view(batch, length, 2, width // 2) * scale


LAYERS = {
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), (2, 5)),
    "sequence": (Heads(), (2, 7, 6)),
    "norm first": (nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4)), (2, 7, 5)),
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3)), (2, 3, 32)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (2, 3, 32, 32)),
    "large images": (nn.Sequential(nn.Conv2d(3, 4, 40), nn.ReLU()), (2, 3, 64, 64)),
    "conv3d": (nn.Conv3d(3, 4, 3), (2, 3, 32, 32, 32)),
    "embedding": (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), (2, 7)),
    "recurrent": (nn.LSTM(5, 4, batch_first=True), (2, 7, 5)),
}


@pytest.mark.parametrize("model, shape", LAYERS.values(), ids=LAYERS)
def test_a_leading_layer_says_what_a_model_eats(model, shape):
    (x,), kwargs = example_inputs(model)
    assert (x.shape, kwargs) == (shape, {})


def test_inputs_follow_the_dtype():
    (x,), _ = example_inputs(nn.Linear(5, 4, dtype=torch.float64))
    assert x.dtype == torch.float64


def test_trying_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example_inputs(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x, y):
        return self.linear(x) + y


class Silent(nn.Module):
    def forward(self, x):
        return x


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x):
        assert x.shape[0] == 1
        return self.linear(x)


@pytest.mark.parametrize("model", [TwoInputs(), Silent(), Picky()], ids=lambda m: type(m).__name__)
def test_a_silent_model_is_asked_about(model):
    words = (
        f"gatec: example inputs for {type(model).__name__}\n"
        "  found a model that does not say what it eats: no transformers or timm config, and no "
        "leading Linear, Conv or Embedding under a forward of one tensor\n"
        "  try   gatec.scan(model, inputs=...) with a tensor, a tuple of arguments or a dict of "
        "keywords"
    )
    with pytest.raises(GatecError, match=f"^{re.escape(words)}$"):
        example_inputs(model)


def test_text_is_no_input():
    words = (
        "gatec: example inputs as tensors\n"
        "  found 'a sentence', a value of type str\n"
        "  try   gatec.scan(model, inputs=...) with a tensor, a tuple of arguments or a dict of "
        "keywords"
    )
    with pytest.raises(GatecError, match=f"^{re.escape(words)}$"):
        example_inputs(nn.Identity(), "a sentence")
