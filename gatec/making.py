"""What becomes of a region: generated sources, ways to run them, and its gradients as an eager function.

Each anchor has a maker. The ways are what dispatch chooses from, beside eager, once they are verified and measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import tracing

from gatec.derive import Derived, across, derive, own_backward
from gatec.errors import GatecError
from gatec.kernel import Kernel
from gatec.kernels import pointwise, rowwise
from gatec.regions import Region
from gatec.rewrite import copied

Run = Callable[..., Any]
_MADE: dict[Any, Made] = {}


@dataclass(frozen=True)
class Made:
    """`pull(grad, *operands)` gives the gradient of every float operand; so does each way of `backward`.

    All of them are picklable: a way runs in another process before it runs in this one.
    """

    kernel: Kernel
    operands: tuple[str, ...]
    pull: Run
    forward: Mapping[str, Run]
    backward: Mapping[str, Run]


@contextmanager
def aside() -> Iterator[None]:
    """Trace a region for itself: whatever the caller is in the middle of (autocast, no_grad, Dynamo) stays out of it."""
    with tracing(None), torch.inference_mode(False), torch.enable_grad(), torch._C._DisableAutocast():
        yield


def made_for(region: Region) -> Made:
    """The region's generated source, forward and backward; equal regions share one."""
    key = region.key
    if key not in _MADE:
        with aside():
            _same_types(region.typed)
            _MADE[key] = MAKERS[region.anchor](region)
    return _MADE[key]


def origin(region: Region) -> str:
    """Where a region stands, for the head of its source."""
    return f"{region.find.site or 'the model'} ({region.find.where})" if region.find.where else region.name


def tiles(region: Region) -> Made:
    """Pointwise work, and reductions over rows."""
    rows = region.anchor == "row"
    eager, render = region.function(), rowwise.render if rows else pointwise.render
    derived = derive(eager, region.examples, rows=rows)
    kernel = render(region.name, origin(region), derived.forward, derived.backward)
    names = tuple(n.name for n in derived.forward.nodes if n.op == "placeholder")
    ways = {"kernel": kernel.forward}, {"kernel": gradients(kernel)}
    return Made(kernel, names, pull_of(eager, derived), *ways)


MAKERS: dict[str, Callable[[Region], Made]] = {"pointwise": tiles, "row": tiles}


def _same_types(region: Region) -> None:
    """Refuse a region whose dtypes come from autocast: outside it, its op would compute something else."""
    alone = fx.Interpreter(fx.GraphModule(nn.Module(), region.graph()), garbage_collect_values=False)
    alone.run(*(torch.empty_like(x, device="meta") for x in region.examples))
    found = [v for n, v in alone.env.items() if n.op not in ("placeholder", "output")]
    for node, value in zip(region.nodes, found, strict=True):
        wanted = node.meta.get("val")
        if isinstance(wanted, Tensor) and value.dtype != wanted.dtype:
            raise GatecError(
                "a region that computes the same dtypes without autocast",
                found=f"{wanted.dtype} for {value.dtype} of {node.name}",
                where=region.find.where,
            )


def pull_of(eager: Callable[..., Tensor], derived: Derived) -> Pull:
    """The vjp as an eager function."""
    pull = Pull(eager, derived.columns, {derived.columns: _runs(derived)})
    if own_backward(eager):
        _same_gradients(eager, pull, [n.meta["val"] for n in derived.forward.find_nodes(op="placeholder")])
    return pull


def _same_gradients(eager: Run, pull: Run, examples: Sequence[Tensor]) -> None:
    """Refuse a backward that somebody wrote with sums or sizes of its own: a kernel sees one shape of everything."""
    drawn = torch.Generator().manual_seed(0)
    xs = [torch.randn(x.shape, generator=drawn, dtype=torch.float64) for x in examples]
    xs = [x.requires_grad_() if e.is_floating_point() else x.to(e.dtype) for x, e in zip(xs, examples, strict=True)]
    out = eager(*xs)
    grad = torch.randn(out.shape, generator=drawn, dtype=out.dtype)
    wanted = torch.autograd.grad(
        out, [x for x in xs if x.requires_grad], grad, materialize_grads=True, allow_unused=True
    )
    found = pull(grad, *(x.detach() for x in xs))
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
        raise GatecError("a backward of its own that works element by element", found="other gradients than its own")


@dataclass(frozen=True, eq=False)
class Pull:
    """In float32 or wider, summed to each operand's shape, rounded once. `runs` has a graph for each length of a row."""

    eager: Callable[..., Tensor]
    columns: int | None
    runs: dict[int | None, Run]

    def __call__(self, grad: Tensor, *xs: Tensor) -> list[Tensor]:
        wide = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (grad, *xs)]
        full = torch.broadcast_shapes(*(x.shape for x in xs))
        columns = None if self.columns is None else full[-1]
        if columns not in self.runs:  # the length of a row is a number in its graph
            self.runs[columns] = _runs(derive(self.eager, xs, rows=True))
        found = self.runs[columns](*(w.expand(across(w, full, columns is not None)) for w in wide))
        floats = [x for x in xs if x.is_floating_point()]
        grads = (g for g in found if g is not None)
        return [g.sum_to_size(x.shape).to(x.dtype) for g, x in zip(grads, floats, strict=True)]


def _runs(derived: Derived) -> Callable[..., Any]:
    run: Callable[..., Any] = fx.GraphModule(nn.Module(), _anywhere(derived.backward)).forward
    return run


def _anywhere(traced: fx.Graph) -> fx.Graph:
    """The graph with its constants on the operands' device and in their shape; it was derived without either."""
    graph = copied(traced)
    like = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op == "call_function" and "device" in node.kwargs:
            value = node.args[-1] if node.target is torch.ops.aten.full.default else None
            with graph.inserting_before(node):
                kind = {"dtype": node.kwargs.get("dtype")}
                new = graph.call_function(torch.full_like, (like, value), kind) if value is not None else None
            if new is None:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
            else:
                node.replace_all_uses_with(new)
                graph.erase_node(node)
    return graph


def gradients(kernel: Kernel) -> Run:
    """A kernel's backward without the operands that have no gradient."""
    return partial(_gradients, kernel)


def _gradients(kernel: Kernel, grad: Tensor, *xs: Tensor) -> list[Tensor]:
    return [g for g in kernel.backward(grad, *xs) if g is not None]
