"""diffusers: U-Nets, diffusion transformers and autoencoders, with the small arguments of their own tests."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatec.bench.coverage.entry import Built, Entry

NEEDS = ("diffusers",)

UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 16}
TEXT = {"cross_attention_dim": 16}
JOINT = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
KL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4,
"down_block_types": ("DownEncoderBlock2D",) * 2,
      "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip


def noise(*size: int) -> Tensor:
    return torch.randn(size)


def _image(channels: int, side: int = 16, **more: Any) -> dict[str, Any]:
    return {"sample": noise(2, channels, side, side), **more}


def _latent(channels: int, side: int = 8, **more: Any) -> dict[str, Any]:
    return {"hidden_states": noise(2, channels, side, side), **more}


def _when(value: float = 10.0) -> Tensor:
    return torch.tensor([value, value / 2])


# Class, its arguments, the arguments of its forward.
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "UNet1DModel": (
        {"block_out_channels": (32, 64), "in_channels": 4, "out_channels": 4, "extra_in_channels": 64,
         "sample_size": 32,
         "down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"), "up_block_types": ("AttnUpBlock1D",
         "UpBlock1DNoSkip")},
        lambda: {"sample": noise(2, 4, 32), "timestep": torch.tensor([10, 5])}),
    "UNet2DModel": (
        {**UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D",
         "UpBlock2D"),
         "attention_head_dim": 4}, lambda: _image(3, timestep=10)),
    "UNet2DConditionModel": (
        {**UNET, **TEXT, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        lambda: _image(4, timestep=10, encoder_hidden_states=noise(2, 5, 16))),
    "UNet3DConditionModel": (
        {**UNET, **TEXT, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 4,
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        lambda: {"sample": noise(2, 4, 3, 16, 16), "timestep": 10, "encoder_hidden_states": noise(2, 5, 16)}),
    "UNetSpatioTemporalConditionModel": (
        {"block_out_channels": (32, 64), "layers_per_block": 1, "num_attention_heads": (4, 4),
         "cross_attention_dim": 16,
         "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), "sample_size": 16,
         "in_channels": 4,
         "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
         "projection_class_embeddings_input_dim": 96,
         "addition_time_embed_dim": 32},
        lambda: {"sample": noise(2, 2, 4, 16, 16), "timestep": 10, "encoder_hidden_states": noise(2, 1, 16),
                 "added_time_ids": torch.full((2, 3), 6.0)}),
    "ControlNetModel": (
        {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 16,
         "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "conditioning_embedding_out_channels": (8, 16)},
        lambda: _image(4, timestep=10, encoder_hidden_states=noise(2, 5, 16), controlnet_cond=noise(2, 3, 32, 32))),
    "UVit2DModel": (
        {"hidden_size": 32, "encoder_hidden_size": 32, "cond_embed_dim": 32, "micro_cond_encode_dim": 16,
         "micro_cond_embed_dim": 80,
         "vocab_size": 16, "codebook_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
         "intermediate_size": 64,
         "block_out_channels": 32, "sample_size": 8, "block_num_heads": 4},
        lambda: {"input_ids": torch.randint(0, 16, (2, 8, 8)), "encoder_hidden_states": noise(2, 5, 32),
                 "pooled_text_emb": noise(2, 32), "micro_conds": noise(2, 5)}),
    "Transformer2DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "norm_num_groups": 4,
         "cross_attention_dim": 16},
        lambda: _latent(16, encoder_hidden_states=noise(2, 5, 16))),
    "DiTTransformer2DModel": (
        {**JOINT, "in_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 8},
        lambda: _latent(4, timestep=torch.tensor([3, 5]), class_labels=torch.tensor([1, 2]))),
    "PixArtTransformer2DModel": (
        {**JOINT, "in_channels": 4, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 16,
         "use_additional_conditions": False},
        lambda: _latent(4, timestep=torch.tensor([3, 5]), encoder_hidden_states=noise(2, 5, 16),
                        added_cond_kwargs={"aspect_ratio": None, "resolution": None})),
    "SD3Transformer2DModel": (
        {**JOINT, "in_channels": 4, "out_channels": 4, "sample_size": 16, "patch_size": 1, "joint_attention_dim": 16,
         "caption_projection_dim": 16,
         "pooled_projection_dim": 16},
        lambda: _latent(4, timestep=torch.tensor([3, 5]), encoder_hidden_states=noise(2, 5, 16),
        pooled_projections=noise(2, 16))),
    "FluxTransformer2DModel": (
        {**JOINT, "num_single_layers": 1, "in_channels": 4, "joint_attention_dim": 16, "pooled_projection_dim": 16,
         "axes_dims_rope": (2, 2, 4)},
        lambda: {"hidden_states": noise(2, 16, 4), "timestep": _when(1.0), "encoder_hidden_states": noise(2, 5, 16),
                 "pooled_projections": noise(2, 16), "img_ids": noise(16, 3), "txt_ids": noise(5, 3)}),
    "AuraFlowTransformer2DModel": (
        {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4,
         "in_channels": 4,
         "sample_size": 16, "patch_size": 2, "joint_attention_dim": 16, "caption_projection_dim": 32,
         "out_channels": 4, "pos_embed_max_size": 64},
        lambda: _latent(4, timestep=_when(), encoder_hidden_states=noise(2, 5, 16))),
    "SanaTransformer2DModel": (
        {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 8,
         "cross_attention_dim": 16, "caption_channels": 16, "in_channels": 4, "out_channels": 4, "sample_size": 16,
         "patch_size": 1},
        lambda: _latent(4, timestep=_when(), encoder_hidden_states=noise(2, 5, 16))),
    "Lumina2Transformer2DModel": (
        {"sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 1,
         "num_refiner_layers": 1, "num_attention_heads": 3,
         "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2), "axes_lens": (128, 128, 128),
         "cap_feat_dim": 32},
        lambda: _latent(4, timestep=_when(), encoder_hidden_states=noise(2, 5, 32),
        encoder_attention_mask=torch.ones(2, 5, dtype=torch.bool))),
    "HunyuanDiT2DModel": (
        {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4, "sample_size": 8,
         "patch_size": 2, "hidden_size": 16,
         "cross_attention_dim": 8, "cross_attention_dim_t5": 8, "pooled_projection_dim": 4, "text_len": 4,
         "text_len_t5": 4, "learn_sigma": False,
         "use_style_cond_and_image_meta_size": False},
        lambda: _latent(4, timestep=_when(), encoder_hidden_states=noise(2, 4, 8),
        text_embedding_mask=torch.ones(2, 4),
                        encoder_hidden_states_t5=noise(2, 4, 8), text_embedding_mask_t5=torch.ones(2, 4),
                        image_rotary_emb=[torch.ones(16, 8), torch.zeros(16, 8)])),
    "CogVideoXTransformer3DModel": (
        {**JOINT, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2, "text_embed_dim": 8, "sample_width": 8,
         "sample_height": 8,
         "sample_frames": 8, "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 8},
        lambda: {"hidden_states": noise(2, 2, 4, 8, 8), "encoder_hidden_states": noise(2, 8, 8),
        "timestep": torch.tensor([3, 5])}),
    "WanTransformer3DModel": (
        {**JOINT, "attention_head_dim": 12, "patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4,
         "text_dim": 16, "freq_dim": 32, "ffn_dim": 32,
         "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32},
        lambda: {"hidden_states": noise(2, 4, 2, 8, 8), "timestep": torch.tensor([3, 5]),
        "encoder_hidden_states": noise(2, 5, 16)}),
    "LTXVideoTransformer3DModel": (
        {**JOINT, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "caption_channels": 16,
         "qk_norm": "rms_norm_across_heads"},
        lambda: {"hidden_states": noise(2, 32, 4), "encoder_hidden_states": noise(2, 5, 16), "timestep": _when(),
                 "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool), "num_frames": 2, "height": 4,
                 "width": 4}),
    "AutoencoderKL": (KL, lambda: _image(3)),
    "AsymmetricAutoencoderKL": (
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (8, 16),
         "up_block_types": ("UpDecoderBlock2D",) * 2,
         "up_block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_down_block": 1,
         "layers_per_up_block": 1}, lambda: _image(3, mask=torch.ones(2, 1, 16, 16))),
    "AutoencoderTiny": ({"encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8)}, lambda: _image(3, 32)),
    "AutoencoderDC": (
        {"latent_channels": 4, "attention_head_dim": 2, "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
         "encoder_layers_per_block": (1, 1),
         "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_layers_per_block": (1, 1),
         "encoder_block_out_channels": (8, 8),
         "decoder_block_out_channels": (8, 8), "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((),
         (5,))}, lambda: _image(3)),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 12, "decoder_channels": 12, "decoder_input_channels": 6, "audio_channels": 2,
         "downsampling_ratios": [2, 4],
         "channel_multiples": [1, 2]}, lambda: {"sample": noise(2, 2, 64)}),
    "VQModel": (
        {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 3,
         "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2}, lambda: _image(3)),
}  # fmt: skip


def entries() -> Iterator[Entry]:
    diffusers = importlib.import_module("diffusers")
    for name in MODELS:
        if hasattr(diffusers, name):
            yield Entry("diffusers", name, name, partial(build, name))


def build(name: str) -> Built:
    arguments, inputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(importlib.import_module("diffusers"), name)(**arguments).eval()
        plain = {"return_dict": False} if "return_dict" in inspect.signature(model.forward).parameters else {}
        return model, ((), {**inputs(), **plain})
