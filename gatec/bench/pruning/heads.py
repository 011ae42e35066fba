"""What a user of torch-pruning does by hand: say how many heads each projection has, and correct the sizes afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

QUERIES = ("q_proj", "query", "q_lin", "q", "to_q")
BESIDE = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin", "k", "v", "to_k", "to_v")
PACKED = ("qkv", "query_key_value", "Wqkv", "qkv_proj")
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads")
SHARED = ("num_key_value_heads", "num_kv_heads")
DIMS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_head")
WIDTHS = ("all_head_size", "embed_dim", "inner_dim", "attn_dim", "inner_kv_dim")


def counted(model: nn.Module) -> dict[nn.Module, int]:
    """Heads of every projection that writes queries, keys or values."""
    found: dict[nn.Module, int] = {}
    for module, layers in _attentions(model):
        heads = _number(module, COUNTS)
        if heads > 1:
            shared = _number(module, SHARED) or heads
            found |= {layer: shared if name in BESIDE else heads for name, layer in layers.items()}
    return found


def repaired(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """The sizes that attention modules keep as numbers, after their projections have shrunk."""
    for module, layers in _attentions(model):
        asking = next((layer for name, layer in layers.items() if name not in BESIDE), None)
        if asking is None or asking not in heads:
            continue
        width = asking.out_features // (3 if any(name in PACKED for name in layers) else 1)
        shared = min(heads[layer] for layer in layers.values())
        sizes = {COUNTS: heads[asking], SHARED: shared, DIMS: width // heads[asking], WIDTHS: width,
                 ("num_key_value_groups",): heads[asking] // shared}  # fmt: skip
        for names, size in sizes.items():
            for name in names:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, size)


def _attentions(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, nn.Linear]]]:
    for module in model.modules():
        layers = {
            n: m for n, m in module.named_children() if isinstance(m, nn.Linear) and n in (*QUERIES, *BESIDE, *PACKED)
        }
        if layers:
            yield module, layers


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    """As the module or its config says."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(getattr(holder, name, None), int):
                return int(getattr(holder, name))
    return 0
