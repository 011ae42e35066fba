"""Only plain tensors can be cut: quantized and sharded parameters are told by name."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import UninitializedParameter

from gatec.errors import GatecError


def plain(model: nn.Module) -> None:
    """Raises GatecError where a parameter's numbers lie in other tensors: packed ones, or those of other processes."""
    for name, value in model.named_parameters():
        if type(value) is not nn.Parameter and not isinstance(value, UninitializedParameter):
            verb = "shard" if isinstance(value, DTensor) else "quantize"
            raise GatecError("parameters that are plain tensors", found=f"a {type(value).__name__}", where=name,
                             hint=f"prune and compact first, then {verb} what is left")  # fmt: skip


def packed(model: nn.Module) -> str:
    """The first module that keeps its weight in a quantized form of its own, which is no parameter; "" where there is none."""
    return next((path for path, module in model.named_modules() if hasattr(module, "_packed_params")), "")
