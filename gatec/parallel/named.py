"""The plan of a converted transformers model in that library's own words, so that its tensor parallelism deals out experts."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gatec.errors import GatecError
from gatec.parallel.plans import Experts, mixtures

STYLE = "gatec_experts"


def transformers_plan(model: nn.Module) -> dict[str, str]:
    """Write into `model.tp_plan` that mixtures are dealt out, instead of the layers that they were made of; the plan.

    What transformers plans for attention and embeddings stays. Its `apply_tensor_parallelism`, and all that goes by it,
    knows the new style from then on: every process has all tokens, and its share of the experts.
    """
    own: Any = getattr(model, "tp_plan", None)
    if not isinstance(own, dict):
        raise GatecError("a model of transformers that has a tp_plan", found=f"none in {type(model).__name__}",
                         hint="parallelize_module(model, mesh, gatec.tp_plan(model)) takes any model")  # fmt: skip
    paths = mixtures(model)
    known()
    general = {re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths}
    kept = {rule: style for rule, style in own.items() if not any(_within(rule, path) for path in general)}
    plan = {**kept, **dict.fromkeys(sorted(general), STYLE)}
    model.tp_plan = plan  # type: ignore[assignment]
    return plan


def _within(rule: str, path: str) -> bool:
    return rule == path or rule.startswith(f"{path}.")


def known() -> None:
    """Make the style known to transformers."""
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

    class ExpertsStyle(TensorParallelLayer):  # type: ignore[misc]
        def install_forward(self, module: nn.Module, mesh: DeviceMesh) -> Any:
            return Experts("same")._apply(module, mesh)

    ALL_PARALLEL_STYLES.register(STYLE, ExpertsStyle())
