"""Any transformers model type as a config to try things on: two layers, width 64, 512 tokens."""

from __future__ import annotations

import ast
from difflib import get_close_matches
from typing import Any

from gatec.errors import GatecError

# Names are transformers' own; a config is shrunk by those of them that it knows.
SIZES: dict[int, str] = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok moe_top_k router_topk num_experts_per_token",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_conv_pos_embedding_groups",
    8: "patch_size rotary_dim num_experts num_local_experts n_routed_experts moe_num_experts",
    16: "head_dim d_kv attention_head_dim num_conv_pos_embeddings qk_nope_head_dim v_head_dim "
    "qk_rope_head_dim kv_lora_rank q_lora_rank projection_dim mamba_d_state",
    32: "max_source_positions moe_intermediate_size expert_ffn_hidden_size",
    64: "image_size hidden_size d_model n_embd dim word_embed_proj_dim embedding_size max_length",
    96: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    128: "max_position_embeddings n_positions max_target_positions n_ctx",
    512: "vocab_size codebook_size vocab_size_per_layer_input",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def tiny_config(kind: str, options: dict[str, Any]) -> Any:
    """A shrunken config of the model type `kind`, with `options` on top."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(kind)
    unknown = [name for name in options if not hasattr(usual, name)]
    if unknown:
        near = get_close_matches(unknown[0], list(usual.to_dict()), 3)
        raise GatecError(
            f"an option of transformers:{kind}",
            found=f"{unknown[0]!r}, which {type(usual).__name__} does not have",
            hint=", ".join(near) or f"a field of {type(usual).__name__}",
        )
    small = _shrunk(usual)
    width = next((options[n] for n in WIDTHS if n in options), None)
    heads = next((options[n] for n in HEADS if n in options), None)
    if "head_dim" in small and (width or heads):
        small["head_dim"] = (width or 64) // (heads or 4)
    return AutoConfig.for_model(kind, **{**small, **options})


def _shrunk(config: Any) -> dict[str, Any]:
    """Keywords, not assignments: a config works out its layer types and the like as it is built."""
    fields: dict[str, Any] = config.to_dict()
    if "depths" in fields:  # a pyramid: its widths follow from the first stage
        for name in ("hidden_size", "image_size", "patch_size"):
            fields.pop(name, None)
    small: dict[str, Any] = {k: _smaller(k, v) for k, v in fields.items() if _smaller(k, v) != v}
    if "kv_lora_rank" in fields:  # latent attention: one key per head
        small["num_key_value_heads"] = small["num_attention_heads"]
    if "width_coefficient" in fields:  # an EfficientNet's last width, which nothing derives
        small["hidden_dim"] = 320
    if "expand" in fields and "num_heads" in fields:  # Mamba 2: heads of 16
        small["num_heads"] = fields["expand"] * 64 // 16
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if inner is not None:
            small[part] = {"model_type": inner.model_type, **_shrunk(inner)}
    return small


def _smaller(name: str, value: Any) -> Any:
    if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= 512:
        return 500 + len(name) % 12  # the tokens of images and sounds need numbers of their own
    if name in SMALL and isinstance(value, int):
        return min(SMALL[name], value)
    if name in ("head_dim", "num_key_value_heads") and value is None:
        return SMALL[name]
    if name == "mrope_section":
        return [2, 3, 3]  # half of head_dim
    if name == "rope_parameters" and isinstance(value, dict):
        return {key: _smaller(key, item) for key, item in value.items()}
    if name == "conv_dim" and isinstance(value, (list, tuple)):
        return [32] * len(value)
    if name == "attention_types":  # GPT-Neo: (kinds, how often), which must add up to the layers
        return [[["global", "local"], 1]]
    if name in ("width_coefficient", "depth_coefficient"):
        return 0.25
    return value


def parse_options(text: str) -> dict[str, Any]:
    """`num_hidden_layers=4,hidden_size=256` as keywords; commas in brackets separate nothing."""
    options: dict[str, Any] = {}
    for item in _split(text):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise GatecError(
                "options as NAME=VALUE,NAME=VALUE",
                found=repr(item),
                hint="transformers:llama?num_hidden_layers=4,hidden_size=256",
            )
        try:
            options[name.strip()] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            options[name.strip()] = value.strip()
    return options


def _split(text: str) -> list[str]:
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",&" and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item for item in items if item.strip()]
