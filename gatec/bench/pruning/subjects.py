"""The models of the pruning sweep: four suites, each model small, at random, and with the arguments of one call."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from gatec.bench.coverage import of_transformers, suites
from gatec.bench.coverage.entry import Built, Entry
from gatec.vision import torchvision_loads

# Name, type of transformers where it differs, options on top of the small configuration (two layers, width 64).
TRANSFORMERS = """
llama-mha llama num_key_value_heads=4
llama-gqa llama
mistral
qwen2
qwen3
gemma2
phi
phi3
mixtral
qwen3_moe
gpt2
gpt_neox
bloom
falcon
opt
mamba
bert
roberta
distilbert
electra
deberta-v2
albert
modernbert
bart
t5
t5-gated t5 feed_forward_proj=gated-gelu
whisper
wav2vec2
vit
deit
dinov2
swin
segformer
convnext
resnet
clip
"""
TIMM = 25  # of timm's files, in the order of the alphabet
# Other types of transformers that are in wide use; there are hundreds.
TYPES = """
gemma gemma3 cohere olmo2 stablelm gptj gpt_neo codegen mpt granite starcoder2 glm4 smollm3 deepseek_v2 olmoe
granitemoe jamba mamba2 rwkv xlstm recurrent_gemma xlm-roberta camembert mpnet funnel fnet nystromformer
longformer big_bird roformer squeezebert tapas layoutlm mobilebert convbert pegasus mbart m2m_100 blenderbot
marian led mt5 umt5 longt5 switch_transformers beit levit mobilevit mobilevitv2 poolformer pvt cvt
efficientnet regnet bit swinv2 siglip hubert wavlm unispeech data2vec-audio sew speech_to_text
audio-spectrogram-transformer vit_mae detr yolos dpt
"""
LARGE = {
    "convnext_large", "regnet_y_128gf", "regnet_y_32gf", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
    "vgg19_bn", "vit_h_14", "vit_l_16", "vit_l_32",
}  # fmt: skip
# Image side and options of those that do not take 64 pixels as they are; heads that only training reads are left out.
PLAIN: dict[str, Any] = {"init_weights": False, "aux_logits": False}
SIDES: dict[str, tuple[int, dict[str, Any]]] = {
    "inception_v3": (96, PLAIN), "googlenet": (64, PLAIN), "maxvit_t": (224, {}),
    "vit_b_16": (64, {"image_size": 64}), "vit_b_32": (64, {"image_size": 64}),
}  # fmt: skip


@functools.cache
def subjects() -> dict[str, Entry]:
    """By "suite:name"; a suite whose package is not installed has none."""
    named = {entry.spec: entry for found in (_transformers(), _timm(), _torchvision()) for entry in found}
    others = [entry for spec, entry in suites.entries().items() if spec not in named and _wanted(entry)]
    return {**named, **{f"more:{e.spec}": Entry("more", e.family, e.spec, e.make) for e in others}}


def _wanted(entry: Entry) -> bool:
    return entry.suite != "transformers" or entry.name in TYPES.split()


def _transformers() -> Iterator[Entry]:
    if not find_spec("transformers"):
        return
    for line in TRANSFORMERS.strip().split("\n"):
        name, kind, options = (*line.split(), "", "")[:3]
        kind = kind or name
        make = partial(of_transformers.run, kind, options) if options else partial(of_transformers.build, kind)
        yield Entry("transformers", kind, name, make)


def _timm() -> Iterator[Entry]:
    """The first model of each of the first files."""
    if not find_spec("timm"):
        return
    from timm.models import is_model_in_modules, list_modules

    known = [entry for entry in suites.entries().values() if entry.suite == "timm"]
    for file in sorted(list_modules())[:TIMM]:
        inside = (entry for entry in known if is_model_in_modules(entry.name, [file]))
        yield from itertools.islice(inside, 1)


def _torchvision() -> Iterator[Entry]:
    if not torchvision_loads():
        return
    from torchvision import models

    for name in models.list_models(module=models):
        if name not in LARGE:
            yield Entry("torchvision", name, name, partial(_pictured, name))


def _pictured(name: str) -> Built:
    from torchvision import models

    side, options = SIDES.get(name, (64, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.get_model(name, weights=None, **options)
        return model.eval(), ((torch.randn(2, 3, side, side),), {})
