"""Distillation of a model's tail: what its last blocks give is drawn to what they gave before weights were shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gatec.blocks import AND, SHARED
from gatec.capture.record import evaluating
from gatec.errors import GatecError
from gatec.history import history
from gatec.verify import tensors


class Distillation:
    """A loss for `model`, which was made from `teacher`: how far the hidden states behind its tail are from the teacher's.

        shared = gatec.share_blocks(model, 2)
        tail = gatec.Distillation(shared, model)
        optimizer = torch.optim.AdamW(tail.parameters())
        for x in batches:
            tail(x).backward()
            optimizer.step()
            optimizer.zero_grad()

    blocks     paths of the blocks whose outputs are compared; the last ones that share weights if not given

    `tail(...)` takes what the model takes and gives the mean over these blocks of |h - t|^2 / |t|^2. The teacher runs in eval
    mode, without gradients; the model in the mode that it is in.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, blocks: Iterable[str] | None = None) -> None:
        self.model, self.teacher = model, teacher
        self.blocks = [blocks] if isinstance(blocks, str) else _last(model) if blocks is None else list(blocks)
        for whose, holder in (("the model", model), ("its teacher", teacher)):
            paths = dict(holder.named_modules(remove_duplicate=False))
            missing = next((p for p in self.blocks if p not in paths), None)
            if missing is not None or not self.blocks:
                raise GatecError(f"blocks that {whose} has", found=f"no {missing}" if missing else "none",
                                 hint="the teacher is the model that gatec.share_blocks was given")  # fmt: skip
        if any(p is q for p in self.parameters() for q in teacher.parameters()):
            raise GatecError("a teacher with weights of its own", found="weights that the model has, too",
                             hint="gatec.share_blocks(model) is a copy; the teacher is the model itself")  # fmt: skip

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the parameters of the tail, shared ones once."""
        found = {id(p): p for path in self.blocks for p in self.model.get_submodule(path).parameters()}
        return list(found.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad(), evaluating(self.teacher), _outputs(self.teacher, self.blocks) as wanted:
            self.teacher(*args, **kwargs)
        with _outputs(self.model, self.blocks) as found:
            self.model(*args, **kwargs)
        missing = next((p for p in self.blocks if p not in found or p not in wanted), None)
        if missing is not None:
            raise GatecError("blocks that the forward comes by", found=f"no output of {missing}")
        apart = [_apart(found[p], wanted[p]) for p in self.blocks]
        return torch.stack(apart).mean()


def _last(model: nn.Module) -> list[str]:
    """The blocks of the last group that shares weights."""
    groups = [g for step in history(model) if step.get("kind") == SHARED for g in step["compact"]]
    if not groups:
        raise GatecError("a model whose blocks share weights", found=f"none in {type(model).__name__}",
                         hint="gatec.share_blocks(model, 2) first, or blocks=[...]")  # fmt: skip
    return str(groups[-1]).split(AND)


@contextmanager
def _outputs(model: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """The first tensor that each of these modules returns, in whatever is called inside."""
    found: dict[str, Tensor] = {}
    hooks = [model.get_submodule(path).register_forward_hook(_keep(found, path)) for path in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _keep(found: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found[path] = next(tensors(output))

    return hook


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    of = torch.promote_types(found.dtype, torch.float32)
    return (found.to(of) - wanted.to(of)).square().sum() / wanted.to(of).square().sum().clamp_min(torch.finfo(of).tiny)
