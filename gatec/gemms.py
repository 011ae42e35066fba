"""Regions behind linear layers: products and the gate in one kernel, or the library's products and one kernel behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.derive import derive, spared
from gatec.errors import GatecError
from gatec.keeping import Keeping
from gatec.kernel import Kernel
from gatec.kernels import gemm
from gatec.kernels.products import Plan, Product
from gatec.making import MAKERS, Made, Run, origin, pull_of
from gatec.projections import multiplies, operands
from gatec.regions import Region, function, graph_of, named

ADDS = {"add", "iadd"}


def made(region: Region) -> Keeping:
    """One kernel for each list of tiles that suits, and the library with the weights apart or packed."""
    products, epilogue = split(region)
    every = (*region.inputs, *dict.fromkeys(total for total, _ in products))
    called = dict(zip(every, map(spared, named(every)), strict=True))
    plan = Plan(
        tuple(called[n] for n in region.inputs),
        tuple(x.dtype for x in region.examples),
        tuple(Product(called[total], *(called[a] for a in operands(node))) for total, node in products),
    )
    after = Epilogue(epilogue, [called[n] for n in epilogue.inputs])
    derived = derive(after.function(), epilogue.examples)
    if not derived.forward.output_node().meta["val"][0].is_floating_point():
        raise GatecError("a result that can be differentiated", found="a comparison")
    kernel = gemm.render(region.name, origin(region), plan, derived.forward, derived.backward)
    eager = Eager(plan, after.function(), after.names, pull_of(after.function(), derived))
    return Keeping(
        kernel, plan.operands, eager.pull, _ways(kernel, plan, "forward", "library"),
        {"kernel": partial(_backward, kernel)}, eager.room, eager.keep, _ways(kernel, plan, "forward_keeping", "library_keeping"),
    )  # fmt: skip


MAKERS["gemm"] = made


def split(region: Region) -> tuple[list[tuple[fx.Node, fx.Node]], Region]:
    """Each product with the total that it is added to, and the region that is left behind them."""
    totals: dict[fx.Node, list[fx.Node]] = {}
    for node in region.nodes:
        both: Any = node.args
        if multiplies(node):
            totals[node] = [node]
        elif _adds(node) and node is not region.output and all(a in totals and len(a.users) == 1 for a in both):
            totals[node] = [p for a in both for p in totals.pop(a)]
    inner = {p for ps in totals.values() for p in ps} | set(totals)
    nodes = tuple(n for n in region.nodes if n not in inner)
    beside = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a in region.inputs)
    return [(t, p) for t, ps in totals.items() for p in ps], Region(region.find, nodes, (*totals, *beside))


def _adds(node: fx.Node) -> bool:
    """A plain sum of two tensors of one shape."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    both = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
    return name.strip("_") in ADDS and both


@dataclass(frozen=True)
class Epilogue:
    """What stands behind the products, with its inputs under the names that the kernel has for them."""

    region: Region
    names: list[str]

    def function(self) -> Run:
        inputs = dict(zip(self.region.inputs, self.names, strict=True))
        return function(graph_of(inputs, self.region.nodes, self.region.output))


@dataclass(frozen=True)
class Eager:
    """The region in torch's own operations, with the projections kept side by side, and its gradients."""

    plan: Plan
    epilogue: Run
    names: Sequence[str]
    pulls: Run

    def room(self, *xs: Tensor) -> Tensor:
        """Memory for the projections."""
        known = dict(zip(self.plan.operands, xs, strict=True))
        rows, columns = known[self.plan.inputs[0]], known[self.plan.weights[0]].shape[0]
        return rows.new_empty((*rows.shape[:-1], len(self.plan.totals) * columns))

    def keep(self, *xs: Tensor) -> tuple[Tensor, Tensor]:
        known, totals, kept = dict(zip(self.plan.operands, xs, strict=True)), self.plan.totals, self.room(*xs)
        known.update(zip(totals, kept.chunk(len(totals), -1), strict=True))
        seen: set[str] = set()
        for p in self.plan.products:
            bias = known[p.bias] if p.bias else None
            _multiply(known[p.total], known[p.rows], known[p.weight], bias, add=p.total in seen)
            seen.add(p.total)
        return self.epilogue(*(known[n] for n in self.names)), kept

    def pull(self, grad: Tensor, kept: Tensor, *xs: Tensor, needs: Sequence[bool]) -> list[Tensor]:
        known, totals = dict(zip(self.plan.operands, xs, strict=True)), self.plan.totals
        known.update(zip(totals, kept.chunk(len(totals), -1), strict=True))
        beside = [known[n] for n in self.names]
        floats = [n for n, x in zip(self.names, beside, strict=True) if x.is_floating_point()]
        slopes = dict(zip(floats, self.pulls(grad, *beside), strict=True))
        wanted = (n for n, needed in zip(self.plan.operands, needs, strict=True) if needed)
        return [self._gradient(name, known, slopes) for name in wanted]

    def _gradient(self, name: str, known: dict[str, Tensor], slopes: dict[str, Tensor]) -> Tensor:
        found = slopes.get(name) if name not in self.plan.totals else None
        for p in self.plan.products:
            slope = slopes[p.total]
            if name == p.rows:
                part = slope @ known[p.weight]
            elif name == p.weight:
                part = _flat(slope).t() @ _flat(known[p.rows])
            elif name == p.bias:
                part = _flat(slope).sum(0)
            else:
                continue
            found = part if found is None else found + part
        assert found is not None, name
        return found


def _multiply(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, add: bool) -> None:
    """out = x @ weight.T + bias, or added to it."""
    out, x = out.view(math.prod(out.shape[:-1]), out.shape[-1]), _flat(x)
    if add:
        out.addmm_(x, weight.t())
        if bias is not None:
            out.add_(bias)
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _ways(kernel: Kernel, plan: Plan, fused: str, library: str) -> dict[str, Run]:
    """By name: a size of tiles, "library", or "packed"."""
    ways: dict[str, Run] = {name: partial(_run, kernel, fused, tiles=name) for name in gemm.configs(plan)}
    ways["library"] = partial(_run, kernel, library)
    return ways | ({"packed": partial(_run, kernel, library, together=True)} if plan.packs else {})


def _run(kernel: Kernel, function: str, *operands: Tensor, **options: Any) -> Any:
    return getattr(kernel.load(), function)(*operands, **options)


def _backward(kernel: Kernel, grad: Tensor, kept: Tensor, *operands: Tensor, needs: Sequence[bool]) -> list[Tensor]:
    found = kernel.load().backward(grad, *operands, needs=tuple(needs), kept=kept)
    return [g for g in found if g is not None]


# -- weights side by side ---------------------------------------------------------------------------------------------


def packed_weights(module: nn.Module, region: Region, made: Made) -> None:
    """Move the weights that one product could take together into one piece of memory, one behind the other.

    They stay the module's own parameters, so nothing can become stale; where they are moved again, they count as apart.
    """
    if not isinstance(made, Keeping) or "packed" not in made.forward:
        return
    nodes = [operands(n)[1] for n in region.nodes if multiplies(n)]
    if all(n.op == "get_attr" for n in nodes):
        weights = [module.get_parameter(str(n.target)) for n in nodes]
        if all(map(_movable, weights)) and len({(w.dtype, w.device, w.shape[1]) for w in weights}) == 1:
            whole = torch.cat([w.detach() for w in weights])
            for weight, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
                weight.data = part


def _movable(weight: nn.Parameter) -> bool:
    """Whether a parameter has its memory to itself."""
    memory = weight.untyped_storage()
    own = weight.is_contiguous() and memory.nbytes() == weight.numel() * weight.element_size()
    return own and weight.device.type in ("cpu", "cuda") and not (memory.device.type == "cpu" and memory.is_shared())
