"""Places that several passes go to: the MLPs of other people's models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatec.equation import Activation
from gatec.match import Linear, here


def dense(x: Tensor, up: Linear, act: Activation, down: Linear) -> Any:
    return down(act(up(x)))


def gated(x: Tensor, gate: Linear, act: Activation, up: Linear, down: Linear) -> Any:
    return down(act(gate(x)) * up(x))


def dense_hidden(x: Tensor, up: Linear, act: Activation, down: Linear) -> Any:
    return down(here(act(up(x))))


def gated_hidden(x: Tensor, gate: Linear, act: Activation, up: Linear, down: Linear) -> Any:
    return down(here(act(gate(x)) * up(x)))
