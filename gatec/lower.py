"""Where graphs meet kernels: a region becomes a torch.library op with an eager body, a gradient and a kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec import convolutions as _convolutions  # noqa: F401 - adds its maker
from gatec import keeping
from gatec import scans as _scans  # noqa: F401 - adds its maker
from gatec.autograd import by, differentiable, through
from gatec.capture import Call
from gatec.capture.structure import flatten
from gatec.dispatch import CHOOSER, Run, Side
from gatec.dispatch.native import Differentiated, WithGradient
from gatec.errors import GatecError, Refused
from gatec.gemms import packed_weights
from gatec.keeping import Keeping, op_keeping
from gatec.kernel import Kernel
from gatec.making import Made, made_for
from gatec.mixtures import mixtures
from gatec.onnx import register_decomposition
from gatec.recognise import Find
from gatec.regions import Region, around, gates
from gatec.rewrite import children_of
from gatec.roofline import Price, price
from gatec.routers import Router, op_routing, routings
from gatec.routers import sides as router_sides
from gatec.tidy import examples

LIBRARY = torch.library.Library("gatec", "FRAGMENT")
DEVICE = "CUDA"  # the dispatch key under which ways are chosen
_OPS: dict[str, Any] = {}
Lowered = tuple[Region, Made]


EAGER = "eager: on a CPU the region runs as its own graph; its kernel is generated, see kernels_of"
NOTHING = "no two pointwise nodes to fuse around its gate"
LIBRARYS = "nn.{} has kernels of its own that hold all its gates"
OWN = (nn.RNNBase, nn.RNNCellBase, nn.GLU)


@dataclass
class Fusion:
    """The rewrite that replaces regions by ops, replayed on every captured graph of its unit.

    On a CPU the nodes stay as they are, unless `everywhere`: a region there runs as its own eager graph.
    `gates` are those of the unit: kind, line of code, and the reason why it is in no kernel, or "".
    """

    everywhere: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    gates: list[tuple[str, str, str]] = field(default_factory=list)
    only_fuses: bool = True
    name: str = "fuse"

    def here(self, call: Call) -> bool:
        """Whether a call's device is one on which ops are put."""
        leaves = flatten(call.args, call.kwargs).leaves
        return self.everywhere or any(isinstance(t, Tensor) and t.is_cuda for t in leaves)

    def found(self, module: nn.Module, graph: fx.Graph, graph_of: Any) -> list[Lowered]:
        """Whole mixtures and routers first, then what grows around the gates that are left."""
        every = gates(module, graph, graph_of)
        whole = self.derived((*mixtures(every, graph, module), *routings(graph, module)))
        held = {n for region, _ in whole for n in region.nodes}
        every, grown = around(every, graph, module, held=held)
        lowered = whole + self.derived(grown)
        self.gates = [(g.kind, g.where, self._reason(g, lowered, grown, module)) for g in every]
        return lowered

    def derived(self, found: Iterable[Region]) -> list[Lowered]:
        """Each region with its kernel; `left` says which have none."""
        lowered = []
        for region in found:
            try:
                made = made_for(region)
            except GatecError as e:
                self.left[region.name] = str(e.wanted)
                continue
            name = unused(region.name, made.kernel, self.kernels)
            self.kernels[name], self.prices[name] = made.kernel, price(region)
            lowered.append((region, made))
        return lowered

    def _reason(self, gate: Find, lowered: Iterable[Lowered], found: Iterable[Region], module: nn.Module) -> str:
        """Why a gate is in no kernel, or ""."""
        if any(gate.node in region.nodes or gate is region.find for region, _ in lowered):
            return ""
        refused = next((region.name for region in found if gate.node in region.nodes), "")
        layer = module.get_submodule(str(gate.node.target)) if gate.node.op == "call_module" else None
        return self.left.get(refused) or (LIBRARYS.format(type(layer).__name__) if isinstance(layer, OWN) else NOTHING)

    def __call__(
        self, module: nn.Module, graph: fx.Graph, call: Call, *, root: nn.Module | None = None, graph_of: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        """Rewrite `graph`; a first time (`root` is given) that there is nothing to do is a refusal."""
        examples(module, graph)
        lowered = self.found(module, graph, graph_of or children_of(module, graph))
        if self.here(call):
            # Every op before the first region is replaced: one may read what another computes.
            for region, made in lowered:
                packed_weights(module, region, made)
            placed(graph, [(region, op_for(made, region)) for region, made in lowered])
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
        place = {n: i for i, n in enumerate(graph.nodes)}
        with graph.inserting_before(min(region.outputs, key=place.__getitem__)):
            new = graph.call_function(op, tuple(moved.get(n, n) for n in region.inputs))
            parts = (
                [new] if len(region.outputs) == 1 else [graph.call_function(operator.getitem, (new, i)) for i in (0, 1)]
            )
        new.meta = {**region.output.meta, "val": tuple(n.meta.get("val") for n in region.outputs)}
        for old, result in zip(region.outputs, parts, strict=True):
            result.meta = dict(old.meta)
            old.replace_all_uses_with(result)
            moved[old] = result
        for node in reversed(region.nodes):
            if not node.users:  # a size that somebody else asks for stays
                graph.erase_node(node)


# -- one op per kernel ------------------------------------------------------------------------------------------------


def op_for(made: Made, region: Region) -> Any:
    """torch.ops.gatec.NAME_KEY: eager body, fake, autograd, CUDA dispatch and an ONNX decomposition.

    The name holds a hash of the kernel's source, so that it means the same in every process: caches may keep it.
    """
    name = f"{made.kernel.name}_{made.kernel.key}"
    if name in _OPS:
        return _OPS[name]
    eager = region.function()
    if isinstance(made, (Keeping, Router)):
        _OPS[name] = op_keeping(name, made, eager) if isinstance(made, Keeping) else op_routing(name, made, eager)
        return _OPS[name]
    operands = ", ".join(f"Tensor {n}" for n in made.operands)
    LIBRARY.define(f"{name}({operands}) -> Tensor")
    LIBRARY.define(f"{name}_backward(Tensor grad, {operands}) -> Tensor[]")
    forward, backward = sides(made, eager)
    for suffix, body, chosen, lay in (
        ("", eager, _forwards(forward), _laid_out),
        ("_backward", made.pull, _backwards(backward, made.pull), _laid_like),
    ):
        LIBRARY.impl(f"{name}{suffix}", _ending(body, lay), "CompositeExplicitAutograd")
        LIBRARY.impl(f"{name}{suffix}", _ending(chosen, lay), DEVICE)
    op = getattr(torch.ops.gatec, name).default
    back = getattr(torch.ops.gatec, f"{name}_backward").default
    torch.library.register_fake(op, _ending(eager, _laid_out))
    torch.library.register_fake(back, lambda grad, *xs: [torch.empty_like(x) for x in xs if x.is_floating_point()])
    differentiable(LIBRARY, op, eager, by(back), _slower(backward))
    differentiable(LIBRARY, back, made.pull, through(made.pull))
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


# -- the choice -------------------------------------------------------------------------------------------------------


def sides(made: Made, eager: Run) -> tuple[Side, ...]:
    """What is chosen among: forward against the region's nodes, backward against autograd's own through them."""
    name = f"{made.kernel.name}_{made.kernel.key}"
    if isinstance(made, Keeping):
        return keeping.sides(name, made, eager)
    if isinstance(made, Router):
        return router_sides(name, made, eager)
    return (
        Side(name, "forward", made.forward, eager, eager, plain=eager),
        Side(name, "backward", made.backward, Differentiated(eager), made.pull, WithGradient(eager), made.pull),
    )


def _forwards(side: Side) -> Run:
    return lambda *tensors: (CHOOSER.way(side, tensors) or side.eager)(*tensors)


def _backwards(side: Side, pull: Run) -> Run:
    return lambda grad, *tensors: (CHOOSER.way(side, tensors) or pull)(grad, *tensors)


def _slower(side: Side) -> Callable[..., bool]:
    """Whether to train with the nodes as they were: autograd's own backward through them is the fastest, or all that is known.

    An op keeps its operands only and computes everything again; where nothing makes up for that, it is not used. A compiler
    that looks on gets the op.
    """

    def slower(*tensors: Tensor) -> bool:
        traced = torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) for t in tensors)
        return not traced and tensors[0].device.type == DEVICE.lower() and CHOOSER.way(side, tensors) is None

    return slower
