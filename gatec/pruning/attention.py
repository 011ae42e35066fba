"""torch's own attention where its heads together are not as wide as its inputs, which nn.MultiheadAttention cannot say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.Module):
    """nn.MultiheadAttention of heads of any width, with the scale of the widths that they had."""

    # What torch's encoder layers ask before they run it as one operator, which has no such widths.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
                attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False) -> Any:  # fmt: skip
        this: Any = self
        alone, given = query.dim() == 2, (query, key, value)
        q, k, v = _projected(this, [_batched(t, alone, this.batch_first) for t in given])
        if this.bias_k is not None:
            k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, this.bias_k), (v, this.bias_v)))
        if this.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (t.unflatten(-1, (this.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) * this.__dict__["_gatec_narrowed"]["scale"]
        weights = _masked(scores, attn_mask, key_padding_mask).softmax(-1)
        weights = F.dropout(weights, this.dropout, this.training)
        out = this.out_proj((weights @ v).transpose(1, 2).flatten(2))
        out = out[0] if alone else out if this.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights[0] if alone else weights


def _batched(x: Tensor, alone: bool, first: bool) -> Tensor:
    return x.unsqueeze(0) if alone else x if first else x.transpose(0, 1)


def _projected(this: Any, given: list[Tensor]) -> list[Tensor]:
    if this.in_proj_weight is None:
        weights = [this.q_proj_weight, this.k_proj_weight, this.v_proj_weight]
    else:
        values = this.out_proj.weight.shape[1]
        keys = (len(this.in_proj_weight) - values) // 2
        weights = list(this.in_proj_weight.split([keys, keys, values]))
    sizes = [len(w) for w in weights]
    biases = [None] * 3 if this.in_proj_bias is None else this.in_proj_bias.split(sizes)
    return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]


def _masked(scores: Tensor, places: Tensor | None, padding: Tensor | None) -> Tensor:
    """With masks of [queries, keys] or [batch x heads, queries, keys], and of keys; added keys are seen by all."""
    batch, heads = scores.shape[:2]
    if places is not None and places.dim() == 3:
        places = places.reshape(batch, heads, *places.shape[1:])
    if padding is not None:
        padding = padding.reshape(batch, 1, 1, -1)
    for mask in (m for m in (places, padding) if m is not None):
        added = (
            torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask
        )
        scores = scores + F.pad(added, (0, scores.shape[-1] - mask.shape[-1]))
    return scores


def attention(module: nn.Module) -> dict[str, Any] | None:
    """How torch's attention is what it was with heads of other widths; None for other modules."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    before = vars(module).get("_gatec_narrowed", {})
    return {"form": "attention", "scale": before.get("scale", module.head_dim**-0.5)}
