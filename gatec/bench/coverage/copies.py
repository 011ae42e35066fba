"""Deep copies of modules and arguments, tensors in the middle of an autograd graph included."""

from __future__ import annotations

import copy
from typing import Any, TypeVar
from unittest import mock

from torch import Tensor

T = TypeVar("T")


def copied(value: T) -> T:
    """copy.deepcopy, which PyTorch refuses for tensors that autograd made: the old weight_norm leaves one on its module."""
    whole: Any = Tensor.__deepcopy__

    def deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Any:
        if tensor.is_leaf:
            return whole(tensor, memo)
        return memo.setdefault(id(tensor), tensor.detach().clone())

    with mock.patch.object(Tensor, "__deepcopy__", deepcopy):
        return copy.deepcopy(value)
