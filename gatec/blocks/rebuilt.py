"""Whether a config builds the model as it is now: what save_pretrained and from_pretrained count on."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from gatec.blocks.configs import on_meta
from gatec.capture import unit_of
from gatec.errors import GatecError
from gatec.program import Program
from gatec.verify import distance, forward


def says_so(program: Program) -> bool:
    """Whether a model that is built from the model's config and given its tensors returns the same.

    True for a model without a config, which nobody builds from one; gates that are left are not part of any config.
    """
    model = program.model
    config = vars(model).get("config")
    if config is None or any(unit_of(m) for m in model.modules()):
        return True
    try:
        fresh = on_meta(model, _written(config))
        if fresh is None:
            return False
        fresh.load_state_dict(model.state_dict(), assign=True)
        _same_buffers(fresh, model)
        return distance(forward(fresh.train(model.training), program), forward(model, program)) == 0
    except (GatecError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return False


def _written(config: Any) -> Any:
    """The config as it comes back from disk, where it says how it is written there."""
    if hasattr(type(config), "from_dict") and hasattr(config, "to_dict"):
        return type(config).from_dict(copy.deepcopy(config.to_dict()))
    return copy.deepcopy(config)


def _same_buffers(fresh: nn.Module, model: nn.Module) -> None:
    """Buffers that no state dict holds."""
    for path, module in model.named_modules():
        fresh.get_submodule(path)._buffers.update(module._buffers)
