"""Where graphs meet kernels: a region becomes a torch.library op with an eager body, a gradient and a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import tracing

from gatec.capture import Call
from gatec.capture.structure import flatten
from gatec.derive import Derived, across, derive
from gatec.dispatch import choice
from gatec.errors import GatecError, Refused
from gatec.kernel import Kernel
from gatec.kernels import pointwise, rowwise
from gatec.onnx import register_decomposition
from gatec.regions import Region, regions
from gatec.rewrite import children_of, copied
from gatec.roofline import Price, price
from gatec.tidy import examples

LIBRARY = torch.library.Library("gatec", "FRAGMENT")
_OPS: dict[str, Any] = {}
_KERNELS: dict[Any, tuple[Kernel, Derived]] = {}
Lowered = tuple[Region, Kernel, Derived]


EAGER = "eager: on a CPU the region runs as its own graph; its kernel is generated, see kernels_of"
NOTHING = "no two pointwise nodes to fuse around its gate"


@dataclass
class Fusion:
    """The rewrite that replaces regions by ops, replayed on every captured graph of its unit.

    On a CPU the nodes stay as they are, unless `everywhere`: a region there runs as its own eager graph.
    """

    everywhere: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    only_fuses: bool = True
    name: str = "fuse"

    def here(self, call: Call) -> bool:
        """Whether a call's device is one on which ops are put."""
        leaves = flatten(call.args, call.kwargs).leaves
        return self.everywhere or any(isinstance(t, Tensor) and t.is_cuda for t in leaves)

    def derived(self, found: Iterable[Region]) -> list[Lowered]:
        """Each region with its kernel; `left` says which have none."""
        lowered = []
        for region in found:
            try:
                kernel, derived = kernel_for(region)
            except GatecError as e:
                self.left[region.name] = str(e.wanted)
                continue
            name = unused(region.name, kernel, self.kernels)
            self.kernels[name], self.prices[name] = kernel, price(region)
            lowered.append((region, kernel, derived))
        return lowered

    def __call__(
        self, module: nn.Module, graph: fx.Graph, call: Call, *, root: nn.Module | None = None, graph_of: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        """Rewrite `graph`; a first time (`root` is given) that there is nothing to do is a refusal."""
        examples(module, graph)
        lowered = self.derived(regions(module, graph, graph_of or children_of(module, graph)))
        if self.here(call):
            # Every op before the first region is replaced: one may read what another computes.
            placed(graph, [(region, op_for(kernel, derived, region)) for region, kernel, derived in lowered])
            graph.lint()
        if root is not None and not (lowered and self.here(call)):
            raise Refused(next(iter(self.left.values()), EAGER if lowered else NOTHING))

    def born(self, site: Any) -> None:
        """A fusion adds nothing."""


def unused(name: str, kernel: Kernel, taken: dict[str, Kernel]) -> str:
    """The name, numbered where another kernel has it."""
    number, free = 2, name
    while taken.get(free, kernel) != kernel:
        free, number = f"{name}_{number}", number + 1
    return free


def placed(graph: fx.Graph, chosen: Sequence[tuple[Region, Callable[..., Tensor]]]) -> None:
    """Put an op in the place of each region, whose nodes are the graph's own."""
    moved: dict[fx.Node, fx.Node] = {}
    for region, op in chosen:
        with graph.inserting_before(region.output):
            new = graph.call_function(op, tuple(moved.get(n, n) for n in region.inputs))
        new.meta = dict(region.output.meta)
        region.output.replace_all_uses_with(new)
        moved[region.output] = new
        for node in reversed(region.nodes):
            graph.erase_node(node)


@contextmanager
def aside() -> Iterator[None]:
    """Trace a region for itself: whatever the caller is in the middle of (autocast, no_grad, Dynamo) stays out of it."""
    with tracing(None), torch.inference_mode(False), torch.enable_grad(), torch._C._DisableAutocast():
        yield


def kernel_for(region: Region) -> tuple[Kernel, Derived]:
    """The region's generated source, forward and backward; equal regions share one."""
    key = region.key
    if key not in _KERNELS:
        with aside():
            _same_types(region)
            derived = derive(region.function(), region.examples, rows=region.rows)
        origin = f"{region.find.site or 'the model'} ({region.find.where})" if region.find.where else region.name
        render = rowwise.render if region.rows else pointwise.render
        _KERNELS[key] = render(region.name, origin, derived.forward, derived.backward), derived
    return _KERNELS[key]


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


# -- one op per kernel ------------------------------------------------------------------------------------------------


def op_for(kernel: Kernel, derived: Derived, region: Region) -> Any:
    """torch.ops.gatec.NAME_KEY: eager body, fake, autograd, CUDA dispatch and an ONNX decomposition.

    The name holds a hash of the kernel's source, so that it means the same in every process: caches may keep it.
    """
    name = f"{kernel.name}_{kernel.key}"
    if name in _OPS:
        return _OPS[name]
    eager = region.function()
    names = [n.name for n in derived.forward.nodes if n.op == "placeholder"]
    operands = ", ".join(f"Tensor {n}" for n in names)
    LIBRARY.define(f"{name}({operands}) -> Tensor")
    LIBRARY.define(f"{name}_backward(Tensor grad, {operands}) -> Tensor[]")
    pull = _pull(eager, derived)
    for suffix, body, launch, lay in (
        ("", eager, kernel.forward, _laid_out),
        ("_backward", pull, _gradients(kernel), _laid_like),
    ):
        choose = _dispatched(name, suffix or "forward", body, launch)
        LIBRARY.impl(f"{name}{suffix}", _ending(body, lay), "CompositeExplicitAutograd")
        LIBRARY.impl(f"{name}{suffix}", _ending(choose, lay), "CUDA")
    op = getattr(torch.ops.gatec, name).default
    back = getattr(torch.ops.gatec, f"{name}_backward").default
    torch.library.register_fake(op, _ending(eager, _laid_out))
    torch.library.register_fake(back, lambda grad, *xs: [torch.empty_like(x) for x in xs if x.is_floating_point()])
    torch.library.register_autograd(op, _backward(back), setup_context=_save)
    register_decomposition(op, eager)
    _OPS[name] = op
    return op


def _ending(body: Callable[..., Any], lay: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, its results in the memory layout that `lay` promises: the same on every device and in a trace."""
    return lambda *tensors: lay(body(*tensors), tensors)


def _laid_out(out: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """Like the first operand of its shape, which is how a kernel writes it."""
    like = next((x for x in tensors if x.shape == out.shape), None)
    if like is None:
        return out.contiguous()
    return _strided(out, torch.empty_like(like, dtype=out.dtype, device="meta"))


def _laid_like(grads: list[Tensor], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Each gradient like its operand."""
    floats = [x for x in tensors[1:] if x.is_floating_point()]
    return [_strided(g, torch.empty_like(x, device="meta")) for g, x in zip(grads, floats, strict=True)]


def _strided(value: Tensor, like: Tensor) -> Tensor:
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(back: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors  # a checkpoint hands them over once
        found = iter(back(grad, *operands))
        return tuple(next(found) if x.is_floating_point() else None for x in operands)

    return pull


def _pull(eager: Callable[..., Tensor], derived: Derived) -> Callable[..., list[Tensor]]:
    """The vjp as an eager function: in float32 or wider, summed to each operand's shape, rounded once."""
    runs = {derived.columns: _runs(derived)}

    def pull(grad: Tensor, *xs: Tensor) -> list[Tensor]:
        wide = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (grad, *xs)]
        full = torch.broadcast_shapes(*(x.shape for x in xs))
        columns = None if derived.columns is None else full[-1]
        if columns not in runs:  # the length of a row is a number in its graph
            runs[columns] = _runs(derive(eager, xs, rows=True))
        found = runs[columns](*(w.expand(across(w, full, columns is not None)) for w in wide))
        floats = [x for x in xs if x.is_floating_point()]
        grads = (g for g in found if g is not None)
        return [g.sum_to_size(x.shape).to(x.dtype) for g, x in zip(grads, floats, strict=True)]

    return pull


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


def _gradients(kernel: Kernel) -> Callable[..., list[Tensor]]:
    def run(grad: Tensor, *xs: Tensor) -> list[Tensor]:
        return [g for g in kernel.backward(grad, *xs) if g is not None]

    return run


def _dispatched(region: str, side: str, eager: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(*tensors: Tensor) -> Any:
        return choice(region, side, kernel, eager, eager, tensors)(*tensors)

    return run
