"""Regions: the pointwise nodes around a gate that one kernel computes, and what flows into them."""

from __future__ import annotations

import builtins
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
from gatec.equation import ACTIVATIONS
from gatec.grouped import grouped_linear
from gatec.match import Canon
from gatec.match.spelling import overwrites
from gatec.match.terms import shape_of, storage
from gatec.projections import alone, multiplies, opened, projects
from gatec.recognise import Find, finds
from gatec.rowform import LONGEST
from gatec.tidy import inline

POINTWISE = {
    "add", "sub", "rsub", "mul", "multiply", "truediv", "div", "neg", "pow", "square", "sigmoid", "silu", "gelu", "tanh", "relu",
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "abs", "erf", "softplus", "mish", "hardsigmoid",
    "hardswish", "leaky_relu", "elu", "celu", "selu", "softsign", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where",
    "lerp", "addcmul", "ge", "gt", "le", "lt", "eq", "ne", "to", "float", "double", "half", "bfloat16", "type_as", "detach",
    "relu6", "hardtanh", "positive", "logical_and", "logical_or", "logical_not",
}  # fmt: skip
HELPERS = {"dtype", "device"}
REDUCING = {"mean", "sum", "amax", "amin", "var", "std"}
ROWWISE = {"rms_norm", "layer_norm", "softmax", "log_softmax", "normalize"}


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
    def anchor(self) -> str:
        """ "gemm" behind linear layers, "row" where it looks at whole rows (a norm, a softmax, a statistic), else "pointwise"."""
        if any(map(multiplies, self.nodes)):
            return "gemm"
        return "row" if any(map(rowwise, self.nodes)) else "pointwise"

    @property
    def examples(self) -> list[Tensor]:
        return [n.meta["val"] for n in self.inputs]

    @property
    def operands(self) -> list[str]:
        """The inputs' names, numbered among themselves and not in the whole graph: every layer's region reads alike."""
        return named(self.inputs)

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


def named(nodes: Iterable[fx.Node]) -> list[str]:
    """The names of nodes, numbered among themselves."""
    names = [re.sub(r"_\d+$", "", n.name) or "x" for n in nodes]
    names = [f"{n}_value" if hasattr(builtins, n) or n in ("torch", "device", "inf", "nan") else n for n in names]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}_{n}" if n else name for name, n in zip(names, before, strict=True)]


def regions(
    module: nn.Module, graph: fx.Graph, graph_of: Callable[[str], fx.Graph | None], *, opens: bool = True
) -> list[Region]:
    """The regions of one unit's graph. Modules that a region may hold are first written as functions."""
    canon = Canon(graph_of, module.get_submodule)
    canon.run("", graph)
    if _spelled(module, graph, canon):
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
    return grown((f for f in finds(canon, calls=True) if f.site == ""), graph, module, opens=opens)


def grown(found: Iterable[Find], graph: fx.Graph, module: nn.Module, *, opens: bool = True) -> list[Region]:
    """The region around each gate of one graph; a node belongs to one region. `opens`: layers may become functions."""
    surroundings = Surroundings.of(graph, module)
    taken: set[fx.Node] = set()
    regions: list[Region] = []
    for find in list(found):
        region = _grow(find, surroundings) if find.node not in taken else None
        if region is not None and not taken & set(region.nodes):
            region = _multiplied(region, surroundings, module if opens else None, taken)
            taken.update(region.nodes)
            regions.append(region)
    return regions


def _spelled(module: nn.Module, graph: fx.Graph, canon: Canon) -> bool:
    """Write modules that a region may hold as functions: activations, norms, softmax; whether there were any."""
    changed = False
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        term, path = canon.terms["", node], str(node.target)
        child, layer = canon.graph_of(path), module.get_submodule(path)
        if child is not None and (term.op in ACTIVATIONS or _small(child)) and not _hooked(layer):
            if sum(n.target == path for n in graph.nodes) > 1:
                continue
            inline(graph, path, child)
        elif type(layer).__module__ == "torch.nn.modules.activation" and term.op in FUNCTIONS:
            _as_function(graph, node, FUNCTIONS[term.op], (), FORMS.get(term.op, {}))
        elif type(layer) in LAYERS:
            _as_function(graph, node, *_layer(graph, node, path, layer))
        else:
            continue
        changed = True
    return changed


FUNCTIONS: dict[str, Any] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "gelu_tanh": F.gelu,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {"gelu_tanh": {"approximate": "tanh"}}
LAYERS = {nn.LayerNorm: F.layer_norm, nn.RMSNorm: F.rms_norm, nn.Softmax: F.softmax}


def _small(graph: fx.Graph) -> bool:
    """Whether a child does nothing but what a region can hold: a norm or a gate that somebody wrote as a module."""
    work = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    held = all(pointwise(n) or rowwise(n) or _helper(n) or n.target is hold for n in work)
    return held and bool(work)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _layer(graph: fx.Graph, node: fx.Node, path: str, layer: nn.Module) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function of one of torch's layers, with its parameters read in front of the call."""
    if isinstance(layer, nn.Softmax):
        return F.softmax, (), {"dim": layer.dim}
    sizes: Any = layer.normalized_shape
    options: dict[str, Any] = {"eps": layer.eps}
    with graph.inserting_before(node):
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if value is not None:
                options[name] = graph.get_attr(f"{path}.{name}")
                options[name].meta["val"] = value
    return LAYERS[type(layer)], (tuple(sizes),), options


def _as_function(graph: fx.Graph, node: fx.Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(function, (node.args[0], *args), kwargs)
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
    own = own or target is grouped_linear
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
        joins = all(u in inside for u in node.users) and (pointwise(node) or rowwise(node) or _helper(node))
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


def _multiplied(region: Region, around: Surroundings, module: nn.Module | None, taken: set[fx.Node]) -> Region:
    """The region with the linear layers in front of it that nobody else reads, where it is pointwise."""
    end, inside = region.output, set(region.nodes)
    if region.anchor != "pointwise":
        return region
    found = [
        n for n in region.inputs
        if n not in taken and inside.issuperset(n.users) and around.waits(n, end)
        and shape_of(n) == shape_of(end) and projects(n, module) and alone(n, region.inputs)
    ]  # fmt: skip
    if not found:
        return region
    nodes = []
    for node in sorted(found, key=around.place.__getitem__):
        nodes.append(opened(node, module))
        around.place[nodes[-1]] = around.place[node]
    every = (*nodes, *region.nodes)
    read = dict.fromkeys(a for n in every for a in n.all_input_nodes if a not in every)
    return Region(region.find, every, tuple(read))


def pointwise(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or writes(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_") in POINTWISE and not any(isinstance(a, (tuple, list)) for a in node.args)


def rowwise(node: fx.Node) -> bool:
    """Whether a node computes rows from rows, or one number for each of them, and keeps it as a dimension."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name not in REDUCING | ROWWISE or not node.all_input_nodes:
        return False
    before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)) or before.dim() < 2:
        return False
    row = before.shape[-1]
    if type(row) is not int or not 1 < row <= LONGEST:
        return False
    if name in REDUCING:
        return tuple(after.shape) == (*before.shape[:-1], 1)
    return _over_the_row(name, node, before.dim())


def _over_the_row(name: str, node: fx.Node, rank: int) -> bool:
    first, options = (node.args[1:2] or (None,))[0], node.kwargs
    if name.endswith("_norm"):
        sizes = options.get("normalized_shape", first)
        return isinstance(sizes, (tuple, list)) and len(sizes) == 1 and type(sizes[0]) is int
    given: Any = options.get("dim", node.args[2] if name == "normalize" and len(node.args) > 2 else first)
    plain = bool(options.get("p", 2) == 2) and options.get("dtype") is None
    return plain and type(given) is int and given in (-1, rank - 1)


def _helper(node: fx.Node) -> bool:
    """A dtype read off a tensor for a cast."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in HELPERS
