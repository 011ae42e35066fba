"""A gate's arithmetic, written down once: an ordinary function of tensors, with activations as its only choices."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x) * F.relu(x)


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mish": F.mish,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu2": _relu2, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "softsign": F.softsign, "selu": F.selu, "elu": F.elu, "celu": F.celu,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "swish": lambda x, c: x * torch.sigmoid(c * x),
    "clamp": lambda x, bounds: x.clamp(*bounds),
}  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """A named activation, however the model spelled it; `data` is its parameter where it has one (ELU's alpha ...)."""

    name: str
    data: Any = None

    def __call__(self, x: Any) -> Any:
        function = ACTIVATIONS[self.name]
        if self.data is None:
            return function(x)
        return function(x, *self.data) if self.name == "softplus" else function(x, self.data)

    def __str__(self) -> str:
        return self.name if self.data is None else f"{self.name}({self.data})"

    @property
    def zero_at_zero(self) -> bool:
        return self.name not in ("sigmoid", "hardsigmoid", "softplus", "clamp")


@dataclass(frozen=True)
class Equation:
    """A gate's arithmetic: `tensors` are its operands, `acts` the activations that it leaves open."""

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.function.__doc__)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(n for n, k in self._parameters().items() if k is not Activation)

    @property
    def acts(self) -> tuple[str, ...]:
        return tuple(n for n, k in self._parameters().items() if k is Activation)

    def _parameters(self) -> dict[str, Any]:
        return {n: p.annotation for n, p in inspect.signature(self.function, eval_str=True).parameters.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def equation(function: Callable[..., Any]) -> Equation:
    """Declare a gate's arithmetic; it stays an ordinary function of tensors."""
    return Equation(function)
