"""Places that several passes go to: the MLPs, residual branches, blocks, attentions and layers of other people's models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gatec.equation import Activation
from gatec.match import Attention, Block, Branch, Features, Linear, Pointwise, Projection, here


def dense(x: Tensor, up: Linear, act: Activation, down: Linear) -> Any:
    return down(act(up(x)))


def gated(x: Tensor, gate: Linear, act: Activation, up: Linear, down: Linear) -> Any:
    return down(act(gate(x)) * up(x))


def pointwise(x: Tensor, up: Pointwise, act: Activation, down: Pointwise) -> Any:
    return down(act(up(x)))


def dense_hidden(x: Tensor, up: Linear, act: Activation, down: Linear) -> Any:
    return down(here(act(up(x))))


def gated_hidden(x: Tensor, gate: Linear, act: Activation, up: Linear, down: Linear) -> Any:
    return down(here(act(gate(x)) * up(x)))


def residual(x: Tensor, branch: Branch) -> Any:
    return x + here(branch(x))


def block(x: Tensor, block: Block) -> Any:
    return block(x)


def attended(x: Tensor, attend: Attention, out: Projection) -> Any:
    return out(here(attend(x)))


def projected(attended: Tensor, out: Projection) -> Any:
    return out(here(attended))


def linear(x: Tensor, layer: Features) -> Any:
    return layer(x)


def convolution(x: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Any:
    return layer(x)
