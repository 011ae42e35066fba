"""New nodes in a graph, each with an example of its value, and arithmetic that skips zeros and ones."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatec.errors import Refused, first_line
from gatec.tidy import example


class Maker:
    """Writes in front of `anchor`. A rolled value has all steps, in the order of their index, as its first dimension."""

    def __init__(self, module: nn.Module, graph: fx.Graph, anchor: fx.Node, where: str = "") -> None:
        self.module, self.graph, self.anchor, self.where = module, graph, anchor, where
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.rolled: set[fx.Node] = set()

    def make(self, target: Any, *args: Any, rolled: bool = True, **kwargs: Any) -> fx.Node:
        kind = "call_method" if isinstance(target, str) else "call_function"
        return self.node(kind, target, args, kwargs, rolled)

    def node(self, kind: str, target: Any, args: Any, kwargs: Any, rolled: bool = True) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            new = self.graph.create_node(kind, target, args, kwargs)
        new.meta["where"] = self.where
        try:
            new.meta["val"] = example(self.module, new, self.mode)
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise Refused(f"all steps at once: {first_line(e)}") from e
        if rolled:
            self.rolled.add(new)
        return new

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def rank(self, value: Any) -> int:
        """Of one step of it."""
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
            return 0
        return int(value.meta["val"].ndim) - (value in self.rolled)

    def raised(self, value: Any, rank: int) -> Any:
        """A rolled value with dimensions of size 1 behind that of the steps, until one step has this rank."""
        if isinstance(value, fx.Node) and value in self.rolled and isinstance(value.meta["val"], Tensor):
            for _ in range(rank - self.rank(value)):
                value = self.make("unsqueeze", value, 1)
        return value

    def aligned(self, *values: Any) -> list[Any]:
        rank = max(map(self.rank, values))
        return [self.raised(v, rank) for v in values]

    # -- arithmetic: None is zero --------------------------------------------------------------------------------------

    def joined(self, target: Any, *values: Any) -> Any:
        """A pointwise function of values, numbers among them."""
        if not any(isinstance(v, fx.Node) for v in values):
            return target(*values)
        several = any(v in self.rolled for v in values if isinstance(v, fx.Node))
        return self.make(target, *self.aligned(*values), rolled=several)

    def times(self, x: Any, y: Any) -> Any:
        if x is None or y is None:
            return None
        if _is(x, 1):
            return y
        return x if _is(y, 1) else self.joined(operator.mul, x, y)

    def plus(self, x: Any, y: Any) -> Any:
        if x is None or y is None:
            return y if x is None else x
        return self.joined(operator.add, x, y)

    def minus(self, x: Any, y: Any) -> Any:
        if y is None:
            return x
        return self.joined(operator.neg, y) if x is None else self.joined(operator.sub, x, y)

    def over(self, x: Any, y: Any) -> Any:
        return None if x is None else self.joined(operator.truediv, x, y)

    def chosen(self, mask: Any, x: Any, y: Any) -> Any:
        if x is None and y is None:
            return None
        return self.joined(torch.where, mask, *(0.0 if v is None else v for v in (x, y)))


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, fx.Node) and value == number
