"""Blocks that compute with the weights of another one, and keep norms and gates of their own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from gatec.errors import Refused
from gatec.rewrite import Undo

SHARED, AND = "own weights", "|"


def shared(model: nn.Module, group: list[str], undo: Undo) -> None:
    """Let every block of a group but the first compute with the weights of the first. Raises Refused where they differ."""
    first = model.get_submodule(group[0])
    for path in group[1:]:
        block = model.get_submodule(path)
        own, theirs = list(_weights(block)), list(_weights(first))
        if [(p, n, v.shape, v.dtype) for p, n, v in own] != [(p, n, v.shape, v.dtype) for p, n, v in theirs]:
            raise Refused(f"{path} has not the weights that {group[0]} has")
        for (below, name, old), (_, _, new) in zip(own, theirs, strict=True):
            owner = block.get_submodule(below)
            undo.append(partial(setattr, owner, name, old))
            setattr(owner, name, new)


def _weights(block: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(path, name, parameter) for all that layers multiply with, and for their biases."""
    for path, module in block.named_modules():
        held = {name: p for name, p in module._parameters.items() if p is not None}
        if any(p.dim() > 1 for p in held.values()):
            yield from ((path, name, p) for name, p in held.items())
