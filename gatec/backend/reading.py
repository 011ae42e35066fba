"""What Dynamo captured, as recognition reads it: parameters by their real names, examples without symbols or data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

from gatec.capture.values import OURS
from gatec.match import Canon, Term
from gatec.match.terms import join, shape_of

WHOLE = {"tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap", "invoke_subgraph", "cond"}
ROOT = re.compile(r"[LG]\['([^']*)'\]\.?")
MEMBER = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]")
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
UNKNOWN = 8  # a size that depends on data has no example


@dataclass
class Reading:
    """Copies of Dynamo's graph and of the bodies inside it, by path, numbered in one canon.

    `own` leads from a node back to Dynamo's, which stays untouched until regions are put; `opaque` names the operators
    whose bodies were not read.
    """

    whole: fx.GraphModule
    canon: Canon = field(init=False)
    examples: Examples = field(default_factory=lambda: Examples())
    graphs: dict[str, fx.Graph] = field(default_factory=dict)
    modules: dict[str, fx.GraphModule] = field(default_factory=dict)
    own: dict[fx.Node, fx.Node] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.canon = Canon(lambda path: None, self.whole.get_submodule)
        sources = [_source(n) for n in self.whole.graph.find_nodes(op="placeholder")]
        self.several = len({m[1] for s in sources if _member(s) and (m := ROOT.match(s))}) > 1
        self._read("", self.whole, None)

    def site(self, node: fx.Node) -> str:
        """The module whose forward made a node of a graph that was read."""
        stack = list(self.own[node].meta.get("nn_module_stack", {}).values())
        return self.named(stack[-1][0]) if stack else ""

    def named(self, source: str) -> str:
        """L['self']._modules['mlp']._parameters['w'] as mlp.w; with the model's name before it where there are several."""
        member = MEMBER.sub(r".\1", source)
        return ROOT.sub(r"\1.", member).rstrip(".") if self.several else ROOT.sub("", member)

    def forget(self) -> None:
        """Let go of everything that belongs to one compilation: a find outlives it."""
        for graph in self.graphs.values():
            graph.owning_module = None
            for node in graph.nodes:
                node.meta.pop("val", None)

    # -- one graph ------------------------------------------------------------------------------------------------

    def _read(self, path: str, module: fx.GraphModule, operands: list[tuple[Term, Any]] | None) -> None:
        graph = self.graphs[path] = fx.Graph(owning_module=module)
        self.modules[path] = module
        env: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            new = env[node] = self._copied(node, graph, env)
            new.meta = {"where": next((place for place, _ in reversed(frames(node))), "")}
            example = _attribute(module, node) if node.op == "get_attr" else node.meta.get("example_value")
            if node.op != "output":
                new.meta["val"] = self.examples(example)
        self.own.update({new: node for node, new in env.items()})
        self.canon.sweep(path, graph, self._inputs(path, graph, operands))
        for node in graph.nodes:
            self._bodies(path, module, node)

    def _copied(self, node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node]) -> fx.Node:
        """A node as it is, an input by the last part of its name: that is how it is called in a kernel."""
        last = re.findall(r"[A-Za-z_]\w*", self.named(_source(node)))[-1:] if node.op == "placeholder" else []
        return graph.placeholder(last[0]) if last else graph.node_copy(node, env.__getitem__)

    def _inputs(self, path: str, graph: fx.Graph, operands: list[tuple[Term, Any]] | None) -> list[Term]:
        holes = graph.find_nodes(op="placeholder")
        if operands is not None and [shape_of(n) for n in holes] == [shape for _, shape in operands]:
            return [term for term, _ in operands]
        return [self._input(path, n) for n in holes]

    def _input(self, path: str, hole: fx.Node) -> Term:
        """A parameter or buffer is one by its name; anything else is a value that nothing is known about."""
        node, table = self.own[hole], self.canon.table
        source, example = _source(node), node.meta.get("example_value")
        if isinstance(example, Tensor) and source and (isinstance(example, nn.Parameter) or _member(source)):
            return table.make("param", data=self.named(source), shape=shape_of(hole))
        return table.fresh(f"{path}:{hole.name}", shape_of(hole))

    def _bodies(self, path: str, module: fx.GraphModule, node: fx.Node) -> None:
        """The graphs that an operator runs as a whole, such as what a checkpoint recomputes."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            return
        bodies = list(_submodules(module, node))
        name = node.target.name()
        if bodies and name not in WHOLE:
            self.opaque[join(path, node.name)] = f"{name} is one operator: what is inside it was not read"
            return
        tensors = [n for n in tree_leaves((node.args, node.kwargs)) if isinstance(n, fx.Node) and n.op != "get_attr"]
        for target, body in bodies:
            count = len(body.graph.find_nodes(op="placeholder"))
            operands = [(self.canon.terms[path, n], shape_of(n)) for n in tensors[max(len(tensors) - count, 0) :]]
            if all(body is not m for m in self.modules.values()):
                self._read(join(path, target), body, operands)


def _submodules(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[str, fx.GraphModule]]:
    for a in node.all_input_nodes:
        value = _attribute(module, a) if a.op == "get_attr" else None
        if isinstance(value, fx.GraphModule):
            yield str(a.target), value


def _attribute(module: nn.Module, node: fx.Node) -> Any:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _source(node: fx.Node) -> str:
    """Where Dynamo found an input, as Python: L['self']._modules['up']._parameters['weight']."""
    source = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _member(source: str) -> bool:
    return MEMBER.search(source) is not None


def frames(node: fx.Node) -> list[tuple[str, str]]:
    """file:line and function of the user's frames that a node was made in, the outermost first."""
    found = FRAME.findall(node.meta.get("stack_trace") or "")
    return [
        (f"{file.rpartition('site-packages/')[2]}:{line}", name)
        for file, line, name in found
        if not file.startswith(OURS)
    ]


@dataclass
class Examples:
    """Stand-ins on the meta device with the sizes that Dynamo saw; what shares memory there shares it here.

    Comparing Dynamo's own sizes would add guards, and with them recompilations.
    """

    memories: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        return tree_map(self._one, value)

    def _one(self, value: Any) -> Any:
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return hint(value)
        return self._tensor(value) if isinstance(value, Tensor) else value

    def _tensor(self, value: Tensor) -> Tensor:
        sizes = [hint(s) for s in value.shape]
        if value.layout != torch.strided or is_traceable_wrapper_subclass(value) or is_functorch_wrapped_tensor(value):
            return torch.empty(sizes, dtype=value.dtype, device="meta")
        fresh = torch.UntypedStorage(0, device="meta")
        memory = self.memories.setdefault(value.untyped_storage()._cdata, fresh)
        stand_in = torch.empty(0, dtype=value.dtype, device="meta")
        return stand_in.set_(memory, hint(value.storage_offset()), sizes, [hint(s) for s in value.stride()])


def hint(size: Any) -> Any:
    """A symbolic number as it was in the call that is being compiled."""
    if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return size.node.hint if size.node.has_hint() else UNKNOWN
    return size


def shape_seen(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of one of Dynamo's nodes; a dynamic one by its name."""
    value = node.meta.get("example_value")
    return tuple(s if isinstance(s, int) else str(s) for s in value.shape) if isinstance(value, Tensor) else ()
