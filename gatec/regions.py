"""Regions: the pointwise nodes around a gate that one kernel computes, and what flows into them."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatec.capture.guards import hold, writes
from gatec.equation import ACTIVATIONS, Activation
from gatec.match import Canon
from gatec.match.spelling import overwrites
from gatec.match.terms import storage
from gatec.recognise import Find, finds
from gatec.tidy import inline

POINTWISE = {
    "add", "sub", "rsub", "mul", "multiply", "truediv", "div", "neg", "pow", "square", "sigmoid", "silu", "gelu", "tanh", "relu",
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "abs", "erf", "softplus", "mish", "hardsigmoid",
    "hardswish", "leaky_relu", "elu", "celu", "selu", "softsign", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where",
    "lerp", "addcmul", "ge", "gt", "le", "lt", "eq", "ne", "to", "float", "double", "half", "bfloat16", "type_as", "detach",
    "relu6", "hardtanh", "positive", "logical_and", "logical_or", "logical_not",
}  # fmt: skip
HELPERS = {"dtype", "device"}


@dataclass(frozen=True)
class Region:
    """`nodes` in order, the last one is the output; `inputs` are the values that they read from outside."""

    find: Find
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "_", f"{self.find.kind}_{self.find.signal}").lower()

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def examples(self) -> list[Tensor]:
        return [n.meta["val"] for n in self.inputs]

    @property
    def operands(self) -> list[str]:
        """The inputs' names, numbered among themselves and not in the whole graph: every layer's region reads alike."""
        names = [re.sub(r"_\d+$", "", n.name) or "x" for n in self.inputs]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return [f"{name}_{n}" if n else name for name, n in zip(names, before, strict=True)]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for regions that compute the same from operands of the same dtypes and sizes."""
        number = {n: i for i, n in enumerate((*self.inputs, *self.nodes))}
        computed = [
            repr((n.target, fx.node.map_arg((n.args, n.kwargs), lambda a: f"%{number[a]}"))) for n in self.nodes
        ]
        values = [n.meta.get("val") for n in number]
        forms = [(v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v for v in values]
        return self.name, tuple(computed), tuple(forms)

    def graph(self) -> fx.Graph:
        """The region by itself: a graph of its inputs, without the module around it."""
        graph, env = fx.Graph(), {}
        for node, name in zip(self.inputs, self.operands, strict=True):
            env[node] = graph.placeholder(name)
        for node in self.nodes:
            env[node] = graph.node_copy(node, lambda n: env[n])
        graph.output(env[self.output])
        return graph

    def function(self) -> Callable[..., Tensor]:
        """The region as a function of its inputs."""
        found: Callable[..., Tensor] = fx.GraphModule(nn.Module(), self.graph()).forward
        return found


def regions(module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None]) -> list[Region]:
    """The regions of one unit's graph. Activations that are modules are first written as functions."""
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    if _spell_activations(module, graph, canon):
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
    return grown((f for f in finds(canon) if f.site == ""), graph, module)


def grown(found: Iterable[Find], graph: fx.Graph, module: nn.Module) -> list[Region]:
    """The region around each gate of one graph; a node belongs to one region."""
    surroundings = Surroundings.of(graph, module)
    taken: set[fx.Node] = set()
    regions: list[Region] = []
    for find in found:
        region = _grow(find, surroundings) if find.node not in taken else None
        if region is not None and not taken & set(region.nodes):
            taken.update(region.nodes)
            regions.append(region)
    return regions


def _spell_activations(module: nn.Module, graph: fx.Graph, canon: Canon) -> bool:
    """Whether there were any."""
    changed = False
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        term, path = canon.terms["", node], str(node.target)
        child = canon.graph_of(path)
        if child is not None and term.op in ACTIVATIONS and sum(n.target == path for n in graph.nodes) == 1:
            inline(graph, path, child)
        elif type(module.get_submodule(path)).__module__ == "torch.nn.modules.activation" and term.op in FUNCTIONS:
            _as_function(graph, node, Activation(term.op, term.data))
        else:
            continue
        changed = True
    return changed


FUNCTIONS: dict[str, Any] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu_tanh": F.gelu,
}  # fmt: skip


def _as_function(graph: fx.Graph, node: fx.Node, act: Activation) -> None:
    with graph.inserting_before(node):
        kwargs: dict[str, Any] = {"approximate": "tanh"} if act.name == "gelu_tanh" else {}
        new = graph.call_function(FUNCTIONS[act.name], (node.args[0],), kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


@dataclass(frozen=True)
class Surroundings:
    """What decides whether a node may be computed later than it stands: its place, and who writes to memory."""

    place: dict[fx.Node, int]
    writers: list[tuple[int, set[int] | None]]  # place, memory written to; None changes how everything is computed

    @classmethod
    def of(cls, graph: fx.Graph, module: nn.Module) -> Surroundings:
        place = {n: i for i, n in enumerate(graph.nodes)}
        written = ((i, _written(n, module)) for n, i in place.items())
        return cls(place, [(i, memory) for i, memory in written if memory is None or memory])

    def waits(self, node: fx.Node, end: fx.Node) -> bool:
        """Whether the node computes the same at the place of `end`."""
        read = {m for a in node.all_input_nodes if (m := storage(a)) is not None}
        first = bisect_left(self.writers, self.place[node], key=lambda w: w[0])
        later = itertools.takewhile(lambda w: w[0] < self.place[end], self.writers[first:])
        return not any(memory is None or memory & read for _, memory in later)


def _written(node: fx.Node, module: nn.Module) -> set[int] | None:
    """The memory that one node may write to; None for what changes modes: autocast, gradients, a function transform."""
    if node.op in ("placeholder", "get_attr", "output"):
        return set()
    if node.op == "call_module":
        pure = type(child := module.get_submodule(str(node.target))).__module__.startswith("torch.nn.modules")
        pure = pure and not any(child.children()) and not getattr(child, "inplace", False) and not writes(node)
        return set() if pure else _memory(node.all_input_nodes)
    if node.target in fx.node._side_effectful_functions or transforms(node):
        return None
    if writes(node) or overwrites(node):
        known = not isinstance(node.target, torch._ops.OpOverload)
        targets = [node.kwargs["out"]] if "out" in node.kwargs else node.all_input_nodes[: 1 if known else None]
        return _memory(t for t in targets if isinstance(t, fx.Node))
    if node.op == "call_method" or node.target is hold:
        return set()
    return set() if _computes(node.target) else _memory(node.all_input_nodes)


def _computes(target: Any) -> bool:
    """Whether something called with no "in place" about it only computes: operators that say so, torch's and Python's own."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return not any(getattr(target, name)._schema.is_mutable for name in target.overloads())
    own = str(getattr(target, "__module__", None) or "").split(".")[0] in ("torch", "_operator", "math", "builtins", "")
    return isinstance(target, torch._ops.OpOverload) or (own and not isinstance(target, torch._ops.HigherOrderOperator))


def transforms(node: fx.Node) -> int:
    """1 where a torch.func transform begins and -1 where it ends; between the two, tensors have hidden dimensions."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name.endswith("_increment_nesting") - name.endswith("_decrement_nesting")


def _memory(nodes: Iterable[fx.Node]) -> set[int]:
    return {m for n in nodes if (m := storage(n)) is not None}


def _grow(find: Find, surroundings: Surroundings) -> Region | None:
    """Backwards from the gate over pointwise nodes whose values nobody else reads: convex by construction."""
    end, place = find.node, surroundings.place
    inside, asked = {end}, set(end.all_input_nodes)
    inputs: set[fx.Node] = set()
    while asked:
        node = max(asked, key=place.__getitem__)
        asked.remove(node)
        joins = all(u in inside for u in node.users) and (pointwise(node) or _helper(node))
        if joins and surroundings.waits(node, end):
            inside.add(node)
            asked.update(node.all_input_nodes)
        else:
            inputs.add(node)
    nodes = tuple(sorted(inside, key=place.__getitem__))
    work = [n for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    if not pointwise(end) or len(work) < 2 or not all(isinstance(a.meta.get("val"), Tensor) for a in inputs):
        return None
    read = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside)
    return Region(find, nodes, tuple(read))


def pointwise(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or writes(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_") in POINTWISE and not any(isinstance(a, (tuple, list)) for a in node.args)


def _helper(node: fx.Node) -> bool:
    """A dtype read off a tensor for a cast."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in HELPERS
