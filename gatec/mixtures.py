"""Mixtures of experts as regions: from the choice of each token to the sum of its experts' results, around a gate.

    expert, order = sort(chosen.flatten(), stable)        rows = x[order // k]
    hidden = gate(grouped_linear(rows, weight, ends), ...)   pairs = grouped_linear(hidden, down, ends) * scale[order]
    y = pairs[argsort(order)].unflatten(0, (-1, k)).sum(1)

A region whose gate stands between grouped linear layers of that kind grows over all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.derive import derive
from gatec.grouped import grouped_linear, outer_op
from gatec.kernel import Kernel
from gatec.kernels import grouped
from gatec.kernels.groups import FINE, TILES
from gatec.making import MAKERS, Made, Run, origin, pull_of
from gatec.regions import Region, Surroundings


@dataclass(frozen=True)
class Mixture(Region):
    """`inner` is the gate between the first and the last products; inputs are in the order of the kernel's operands."""

    inner: Region

    @property
    def name(self) -> str:
        experts, choices = self.inputs[-1].meta["val"].shape[0], self.inputs[1].meta["val"].shape[-1]
        return f"experts_{choices}_of_{experts}_{super().name}"

    @property
    def anchor(self) -> str:
        return "mixture"


def with_mixtures(found: Sequence[Region], graph: fx.Graph, module: nn.Module) -> list[Region]:
    """The same regions, those inside a mixture grown over it, and without what it covers."""
    if not any(n.target is grouped_linear for n in graph.nodes):
        return list(found)
    surroundings = Surroundings.of(graph, module)
    mixtures = {r.output: m for r in found if (m := _mixture(r, surroundings)) is not None}
    covered = {n for m in mixtures.values() for n in m.nodes}
    return [mixtures.get(r.output, r) for r in found if r.output in mixtures or not covered & set(r.nodes)]


def _mixture(inner: Region, surroundings: Surroundings) -> Mixture | None:
    try:
        end, order, scale, down = _behind(inner)
        x, chosen, weights = _before(inner, order, down)
    except (ValueError, AttributeError):
        return None
    inputs = (x, chosen, scale, *weights, down.args[1])
    inside = _between(end, set(inputs))
    nodes = tuple(sorted(inside, key=surroundings.place.__getitem__))
    closed = all(u in inside for n in nodes if n is not end for u in n.users)
    if not closed or not all(surroundings.waits(n, end) for n in nodes):
        return None
    return Mixture(inner.find, nodes, inputs, inner) if all(map(_tensor, inputs)) else None


def _tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _behind(inner: Region) -> tuple[Any, ...]:
    """The sum over a token's pairs, their order, the numbers that weigh them, and the last product."""
    down = _called(_only(inner.output), "grouped_linear")
    weighted = _called(_only(down), "mul")
    (factor,) = (a for a in weighted.args if a is not down)
    scale, order = _called(_called(factor, "unsqueeze", -1).args[0], "getitem").args
    back = _called(_only(weighted), "getitem", _called(next(iter(set(_only(weighted).args) - {weighted})), "argsort"))
    _same(back.args[1].args[0], order)
    pairs = _called(_only(back), "unflatten", 0)
    end = _called(_only(pairs), "sum", 1)
    _same(inner.output, down.args[0])
    return end, order, _called(scale, "flatten").args[0], down


def _before(inner: Region, order: Any, down: Any) -> tuple[Any, Any, list[Any]]:
    """What tokens and choices the gate's operands come from, and through which weights."""
    ends, products = down.args[2], [_called(n, "grouped_linear") for n in inner.inputs]
    (rows,) = {n.args[0] for n in products}
    for product in products:
        _same(product.args[2], ends)
    x, token = _called(rows, "getitem").args
    _same(_called(token, "floordiv").args[0], order)
    sort = _called(_called(order, "getitem").args[0], "sort")
    _rising(ends, sort)
    if order.args[1] != 1 or not sort.kwargs.get("stable") or token.args[1] != _fan(sort):
        raise ValueError("another order")
    return x, _called(sort.args[0], "flatten").args[0], [n.args[1] for n in products]


def _rising(ends: Any, sort: Any) -> None:
    """Ends are how many of the sorted experts are at most 0, 1, 2, ..."""
    below = _called(_called(ends, "sum", 0).args[0], "le")
    expert = _called(_called(below.args[0], "unsqueeze", -1).args[0], "getitem", 0)
    numbers = _called(_called(_called(below.args[1], "sub", 1).args[0], "cumsum", 0).args[0], "new_ones")
    _same(expert.args[0], sort)
    _same(numbers.args[0], expert)


def _fan(sort: Any) -> int:
    return int(_called(sort.args[0], "flatten").args[0].meta["val"].shape[-1])


def _called(node: Any, name: str, *args: Any) -> Any:
    """The node, if it is a call of that name with these arguments behind the first."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or target != name or node.args[1 : 1 + len(args)] != args:
        raise ValueError(f"{target} instead of {name}")
    return node


def _only(node: fx.Node) -> fx.Node:
    (user,) = node.users
    return user


def _same(a: Any, b: Any) -> None:
    if a is not b:
        raise ValueError("another value")


def _between(end: fx.Node, inputs: set[fx.Node]) -> set[fx.Node]:
    inside, asked = set[fx.Node](), [end]
    while asked:
        node = asked.pop()
        if node not in inside and node not in inputs:
            inside.add(node)
            asked.extend(node.all_input_nodes)
    return inside


# -- its kernel -------------------------------------------------------------------------------------------------------


def made(region: Mixture) -> Made:
    """The mixture's kernel with each list of tiles, forward and backward."""
    derived = derive(region.inner.function(), region.inner.examples)
    scale = region.inputs[2].meta["val"].dtype
    kernel = grouped.render(region.name, origin(region), derived.forward, derived.backward, scale=scale)
    names = grouped.operands(len(region.inner.inputs), biased=False, down_bias=False)
    tiles = FINE if region.examples[0].dtype == torch.float32 else TILES
    forward: dict[str, Run] = {t: partial(_forward, kernel, t) for t in tiles}
    backward: dict[str, Run] = {t: partial(_backward, kernel, t) for t in tiles}
    pull = Library(region.inner.function(), pull_of(region.inner.function(), derived))
    return Made(kernel, tuple(names), pull, forward, backward)


MAKERS["mixture"] = made  # type: ignore[assignment]


def _forward(kernel: Kernel, tiles: str, *operands: Tensor) -> Tensor:
    out: Tensor = kernel.load().forward(*operands, config=tiles)
    return out


def _backward(kernel: Kernel, tiles: str, grad: Tensor, *operands: Tensor) -> list[Tensor]:
    return [g for g in kernel.load().backward(grad, *operands, config=tiles) if g is not None]


@dataclass(frozen=True, eq=False)
class Library:
    """The gradients by the library's grouped products, with the gate's own between them; nothing was kept."""

    gate: Run
    pull: Run

    def __call__(self, grad: Tensor, x: Tensor, chosen: Tensor, scale: Tensor, *weights: Tensor) -> list[Tensor]:
        *firsts, down = weights
        fan, (expert, order) = chosen.shape[-1], torch.sort(chosen.flatten(), stable=True)
        ends = (expert.unsqueeze(-1) <= torch.arange(len(down), device=expert.device)).sum(0)
        token, back = order // fan, torch.argsort(order)
        rows, grads, weight = x[token], grad.to(x.dtype)[token], scale.flatten()[order].unsqueeze(-1)
        totals = [grouped_linear(rows, w, ends) for w in firsts]
        hidden, slope = self.gate(*totals), grouped_linear(grads, down.transpose(1, 2), ends)
        slopes = self.pull((slope * weight).to(x.dtype), *totals)
        parts = [grouped_linear(g, w.transpose(1, 2), ends) for g, w in zip(slopes, firsts, strict=True)]
        shares = (slope * hidden).sum(-1, dtype=torch.float32)[back].to(scale.dtype)
        last = outer_op((grads * weight).to(x.dtype), hidden, ends)
        return [
            sum(parts[1:], parts[0])[back].unflatten(0, (-1, fan)).sum(1), shares.view(scale.shape),
            *(outer_op(g, rows, ends) for g in slopes), last,
        ]  # fmt: skip
