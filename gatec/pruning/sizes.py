"""The sizes that torch's own layers keep beside their parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def resized(module: nn.Module, undo: list[Callable[[], Any]]) -> None:
    """Let the sizes of a layer be those of its parameters."""
    for name, value in sizes(module).items():
        if hasattr(module, name) and getattr(module, name) != value:
            undo.append(partial(setattr, module, name, getattr(module, name)))
            setattr(module, name, value)
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
        undo.append(partial(_flat, module))


def _flat(module: nn.RNNBase) -> None:
    module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]


def sizes(module: nn.Module) -> dict[str, Any]:
    return _sizes(module, getattr(module, "weight", None))


def _sizes(module: Any, weight: Any) -> dict[str, Any]:
    if isinstance(module, _ConvNd):
        across = int(module.groups)
        if isinstance(module, _ConvTransposeNd):
            return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * across}
        return {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * across}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": weight.shape[1]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.GroupNorm) and weight is not None:
        return {"num_channels": weight.shape[0]}
    if isinstance(module, _NormBase):
        first = next((v for v in (weight, module.running_mean) if v is not None), None)
        return {} if first is None else {"num_features": first.shape[0]}
    if isinstance(module, nn.RNNBase):
        into, onto = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        return {"input_size": into.shape[1], "hidden_size": onto.shape[1]}
    if isinstance(weight, nn.Parameter) and weight.dim() == 2 and hasattr(module, "nf") and hasattr(module, "nx"):
        return {"nf": weight.shape[1], "nx": weight.shape[0]}
    return {}
