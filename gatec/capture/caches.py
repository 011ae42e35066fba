"""What a forward keeps on a model for the next one: tables that are computed once, from parameters that may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gatec.capture.record import contents, evaluating, untouched


def emptied(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Empty the lists and dicts of tensors on a model's modules that its forward fills by itself, in place.

    They are told by two forwards: the first fills what is empty, the second leaves it alone.
    """
    with torch.no_grad(), evaluating(model):
        held = [v for m in model.modules() for v, _ in contents(m) if _tensors(v)]
        if held and not _filled(held, model, args, kwargs):
            held = [v for v in held if _filled([v], model, args, kwargs)]
    for value in held:
        value.clear()


def _filled(held: list[Any], model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether forwards fill all of these once they are empty, and then keep what they have put there."""
    with untouched(model):
        for value in held:
            value.clear()
        try:
            model(*args, **kwargs)
            first = [_tensors(v) for v in held]
            model(*args, **kwargs)
        except Exception:  # it counts on what stood there
            return False
        return all(first) and all(_same(a, _tensors(v)) for a, v in zip(first, held, strict=True))


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def _same(found: list[Tensor], again: list[Tensor]) -> bool:
    return len(found) == len(again) and all(a is b for a, b in zip(found, again, strict=True))
