"""What kind of module a class is, by its name."""

from __future__ import annotations

import re
import sys

from torch import nn

CATEGORIES = ("mlp", "attention", "block", "router", "se", "conv", "recurrent", "norm", "model", "other")
BARRED = CATEGORIES[:7]  # of these at least 95 % must be captured

# The first rule whose pattern stands in the name decides: a MoeBlock is an MLP, an AttentionBlock an attention.
RULES = tuple((kind, re.compile(pattern)) for kind, pattern in (
    ("se", r"squeeze|^(effective)?se(module|layer|block|unit)?$|^eca|cbam|excit|^channelatt"),
    ("router", r"router|gating|topk|gate$"),
    ("conv", r"conv\w*(norm|bn|act)|(norm|bn|act)conv|convlayer|^conv"),
    ("norm", r"norm(\dd)?$|norm(\dd)?act|frozenbatch|grn$"),
    ("recurrent", r"lstm|gru|rnn|mamba|ssm|ssd|s6|mixer2|rwkv|retention|delta|recurrent|rglru|cell$|scan"),
    ("mlp", r"mlp|ffn|feed_?forward|glu|expert|moe|intermediate|dense\w*dense|mixingblock|^output$"),
    ("attention", r"attn|attention|selfoutput|crossoutput"),
    ("block", r"block|layer$|stage|bottleneck|residual|unit$|sublayer"),
    ("conv", r"conv|stem|patch|downsampl|upsampl|pyramid"),
    ("model", r"model|encoder|decoder|transformer|backbone|net$|for[a-z]+$|unet|vae|autoencoder"),
))  # fmt: skip


def category(module: nn.Module, path: str) -> str:
    """One of CATEGORIES; the model itself is a model whatever it is called."""
    if not path:
        return "model"
    name = bare(type(module)).lower()
    return next((kind for kind, pattern in RULES if pattern.search(name)), "other")


def bare(kind: type[nn.Module]) -> str:
    """The class name without its family's: SqueezeBertLayer is a Layer, ConvNextLayerNorm a LayerNorm."""
    names = vars(sys.modules.get(kind.__module__, sys)).keys()
    families = [n.removesuffix("PreTrainedModel") for n in names if n.endswith("PreTrainedModel")]
    fitting = [f for f in families if f and kind.__name__.startswith(f) and kind.__name__ != f]
    return kind.__name__.removeprefix(max(fitting, key=len, default=""))
