"""transformers: every model type that there is, small and at random; no configuration is written by hand."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.bench.coverage.entry import Built, Entry, Inputs
from gatec.inputs import example_inputs
from gatec.zoo import load, names

NEEDS = ("transformers",)
# Lists along the stages of a pyramid: a family is itself with one block per stage, each a quarter as wide.
TOWER = re.compile("_(vision|audio|encoder|vision_model)$")
DEEP = ("depths", "layer_depths", "num_block_repeats")
WIDE = ("hidden_sizes", "embed_dim", "embedding_size")

# What no rule guesses: options on top of the small configuration.
SERIES = "prediction_length=4,context_length=12,lags_sequence=[1,2],num_time_features=1,d_model=16"
BACKBONE = "{'model_type':'resnet','embedding_size':16,'hidden_sizes':[16,24,32,40],'depths':[1,1,1,1],'out_features':['stage4']}"
DETR = f"backbone_config={BACKBONE},d_model=32,num_queries=5"
OPTIONS = {
    "autoformer": SERIES,
    "conditional_detr": DETR,
    "deformable_detr": f"{DETR},num_feature_levels=1",

    "dab-detr": f"backbone_config={BACKBONE},hidden_size=32,num_queries=5",
    "deepseek_v2": "num_experts_per_tok=2,n_group=1,topk_group=1,topk_method='greedy'",
    "detr": DETR,
    "dots1": "n_routed_experts=8,num_experts_per_tok=2,n_shared_experts=1",
    "granitemoehybrid": "layer_types=['linear_attention','full_attention'],mamba_n_heads=8,mamba_expand=2,mamba_d_head=16",
    "informer": SERIES,
    "layoutlmv3": "visual_embed=False,coordinate_size=11,shape_size=10",
    "lfm2_moe": "layer_types=['conv','full_attention']",
    "lilt": "hidden_size=96,max_2d_position_embeddings=64",
    "mimi": "upsample_groups=32,num_filters=16,codebook_dim=32,vector_quantization_hidden_dimension=32,hidden_size=64",
    "patchtst": "context_length=32,patch_length=4,patch_stride=4,num_input_channels=2,num_attention_heads=4",
    "patchtsmixer": "num_input_channels=2",
    "reformer": "axial_pos_embds_dim=[16,48],axial_pos_shape=[8,16],attn_layers=['local','lsh'],attention_head_size=16,"
                "num_buckets=4,local_attn_chunk_length=4,lsh_attn_chunk_length=4",
    "table-transformer": DETR,
    "time_series_transformer": SERIES,
    "timesfm": "patch_length=8,context_length=32,horizon_length=8,hidden_size=32,num_attention_heads=2,head_dim=16",
    "vjepa2": "crop_size=32,frames_per_clip=4,patch_size=16,pred_num_hidden_layers=1,pred_hidden_size=48,"
              "pred_num_attention_heads=4,num_pooler_layers=1",
    "wav2vec2-bert": "vocab_size=32",
    "wav2vec2-conformer": "vocab_size=32",
}  # fmt: skip


def _series(model: Any) -> Inputs:
    config = model.config
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return (), {"past_values": torch.rand(2, past), "past_time_features": torch.rand(2, past, 1),
                "past_observed_mask": torch.ones(2, past), "future_values": torch.rand(2, future),
                "future_time_features": torch.rand(2, future, 1)}  # fmt: skip


def _past(model: Any) -> Inputs:
    return (), {"past_values": torch.rand(2, model.config.context_length, model.config.num_input_channels)}


def _beside(name: str, value: Tensor) -> Callable[[Any], Inputs]:
    """The usual inputs, and one more by name."""

    def inputs(model: Any) -> Inputs:
        args, kwargs = example_inputs(model)
        return args, {**kwargs, name: value}

    return inputs


BOXES = torch.tensor([1, 2, 5, 8]).expand(2, 7, 4)


def _trajectory(model: Any) -> Inputs:
    states, actions = torch.rand(2, 6, model.config.state_dim), torch.rand(2, 6, model.config.act_dim)
    return (), {"states": states, "actions": actions, "rewards": torch.rand(2, 6, 1), "returns_to_go": torch.rand(2, 6, 1),
                "timesteps": torch.arange(6).expand(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}  # fmt: skip


def _padded(model: Any) -> Inputs:
    return (), {"past_values": torch.rand(2, 32), "past_values_padding": torch.zeros(2, 32),
                "freq": torch.zeros(2, 1, dtype=torch.long)}  # fmt: skip


def _mono(model: Any) -> Inputs:
    return (torch.rand(2, 1, 2560),), {}


# Arguments that the model does not say by itself.
INPUTS: dict[str, Callable[[Any], Inputs]] = {
    "autoformer": _series,
    "blip": _beside("input_ids", torch.full((2, 7), 5)),
    "bros": _beside("bbox", BOXES / 10),
    "decision_transformer": _trajectory,
    "encodec": _mono,
    "informer": _series,
    "lilt": _beside("bbox", BOXES),
    "mimi": _mono,
    "patchtsmixer": _past,
    "patchtst": _past,
    "time_series_transformer": _series,
    "timesfm": _padded,
    "vilt": _beside("pixel_values", torch.rand(2, 3, 64, 64)),
    "vjepa2": lambda model: ((), {"pixel_values_videos": torch.rand(2, 4, 3, 32, 32)}),
}
# Too many weights even so, with the reason.
LEFT = {
    "dac": "63 M parameters in widths that are derived",
    "gemma3n_vision": "its size is that of a timm model: 294 M parameters",
    "vibevoice_asr": "687 M parameters in a tokenizer whose widths are derived",
}


def entries() -> Iterator[Entry]:
    """One per family, and its towers that a call of the whole may leave out."""
    kinds = [spec.partition(":")[2] for spec in names() if spec.startswith("transformers:")]
    families: dict[str, list[str]] = {}
    for kind in kinds:
        if kind not in LEFT:
            families.setdefault(family(kind), []).append(kind)
    for name, found in sorted(families.items()):
        found.sort(key=lambda kind: (kind.replace("-", "_") != name, bool(TOWER.search(kind)), kind))
        towers = [kind for kind in found[1:] if TOWER.search(kind)]
        yield Entry("transformers", name, found[0], partial(build, *(k for k in found if k not in towers)))
        yield from (Entry("transformers", name, kind, partial(build, kind)) for kind in towers)


def family(kind: str) -> str:
    """The folder of transformers that a model type lives in: one architecture, however many types it has."""
    configurations = importlib.import_module("transformers.models.auto.configuration_auto")
    return str(configurations.model_type_to_module_name(kind))


def build(*kinds: str) -> Built:
    """The first of the family's types that runs, in its smallest form: the pyramid flattened, or else as the zoo has it."""
    failed: Exception | None = None
    for kind in kinds:
        for options in (OPTIONS.get(kind, ""), ",".join(filter(None, (OPTIONS.get(kind), _flat(kind)))))[::-1]:
            try:
                return run(kind, options)
            except Exception as error:  # a family may not like the guess, in whatever words
                failed = failed or error
    assert failed is not None
    raise failed


def run(kind: str, options: str) -> Built:
    model = load(f"transformers:{kind}" + (f"?{options}" if options else ""))
    inputs = INPUTS[kind](model) if kind in INPUTS else example_inputs(model)
    with torch.no_grad():
        model(*inputs[0], **inputs[1])
    return model, inputs


def _flat(kind: str) -> str:
    config = importlib.import_module("transformers").AutoConfig.for_model(kind)
    return ",".join(
        f"{name}={value}" for name in (*DEEP, *WIDE) if (value := _smaller(name, getattr(config, name, None)))
    )


def _smaller(name: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
        return None
    return [1] * len(value) if name in DEEP else [max(16, v // 4) for v in value]
