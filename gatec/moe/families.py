"""Which mixture of transformers computes what a dense model of transformers does, but for its MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A dense model type and a mixture with the same attention, norms and embeddings.

    fields   the mixture's config fields that say its sizes, of (copies, copies per token, shards, hidden units)
    fixed    the mixture's fields that must have one value for it to be the dense model at birth
    ignored  the dense model's fields that its code does not read
    kept     fields that the mixture's code reads though its config does not declare them
    mlp      names of gate, up and down in a dense layer
    experts  names of gate and up in one, of down, and of the router in a layer of the mixture
    empty    prefixes of what the mixture has besides, in a layer: zero at birth
    """

    dense: str
    mixture: str
    fields: Callable[[int, int, int, int], dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    mlp: tuple[str, str, str] = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    experts: tuple[str, str, str] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")
    empty: tuple[str, ...] = ()


def local(copies: int, top_k: int, shards: int, width: int) -> dict[str, Any]:
    return {"num_local_experts": copies * shards, **shared(top_k, shards), "intermediate_size": width // shards}


def counted(copies: int, top_k: int, shards: int, width: int) -> dict[str, Any]:
    return {"num_experts": copies * shards, **shared(top_k, shards), "intermediate_size": width // shards}


def own_width(copies: int, top_k: int, shards: int, width: int) -> dict[str, Any]:
    return {"num_experts": copies * shards, **shared(top_k, shards), "moe_intermediate_size": width // shards}


def ernie(copies: int, top_k: int, shards: int, width: int) -> dict[str, Any]:
    return {"moe_num_experts": copies * shards, "moe_k": top_k * shards, "moe_intermediate_size": width // shards}


def shared(top_k: int, shards: int) -> dict[str, Any]:
    return {"num_experts_per_tok": top_k * shards}


RENORMALISED = {"norm_topk_prob": True}
EVERYWHERE = {"decoder_sparse_step": 1, "mlp_only_layers": []}
FAMILIES = (
    Family("llama", "mixtral", local, {"router_jitter_noise": 0.0}, ignored=("pretraining_tp",)),
    Family("mistral", "mixtral", local, {"router_jitter_noise": 0.0}),
    Family("qwen3", "qwen3_moe", own_width, RENORMALISED | EVERYWHERE, ("layer_types", "max_window_layers"), ("head_dim",)),
    Family("qwen2", "qwen2_moe", own_width, RENORMALISED | EVERYWHERE | {"shared_expert_intermediate_size": 1},
           empty=("mlp.shared_expert.", "mlp.shared_expert_gate.")),
    Family("olmo2", "flex_olmo", counted, RENORMALISED),
    Family("granite", "granitemoe", local, experts=(
        "block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj", "block_sparse_moe.router.weight")),
    Family("ernie4_5", "ernie4_5_moe", ernie, {"moe_num_shared_experts": 0, "moe_layer_start_index": 0, "moe_layer_interval": 1},
           kept=("head_dim",), empty=("mlp.gate.moe_statics.",)),
    Family("cohere2", "cohere2_moe", counted, RENORMALISED | {"num_shared_experts": 0, "first_k_dense_replace": 0},
           kept=("rope_parameters",)),
    Family("qwen3_5_text", "qwen3_5_moe_text", own_width, {"shared_expert_intermediate_size": 1},
           ignored=("intermediate_size",), empty=("mlp.shared_expert.", "mlp.shared_expert_gate.")),
)  # fmt: skip
