"""A region: nodes of one graph that are computed together, and the same work by itself."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture.values import Apply
from gatec.derive import Owned
from gatec.projections import multiplies
from gatec.recognise import Find
from gatec.regions.nodes import convolves, rowwise, scans


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
    def outputs(self) -> tuple[fx.Node, ...]:
        return (self.output,)

    @property
    def anchor(self) -> str:
        """What it is built around: "scan" over time, "gemm" behind linear layers, "conv" behind a convolution, "row" where it
        looks at whole rows (a norm, a softmax, a statistic), else "pointwise"."""
        if scans(self.output):
            return "scan"
        if any(map(multiplies, self.nodes)):
            return "gemm"
        if any(map(convolves, self.nodes)):
            return "conv"
        return "row" if any(map(rowwise, self.nodes)) else "pointwise"

    @property
    def typed(self) -> Region:
        """The nodes that must have the same types without autocast."""
        return self

    @property
    def within(self) -> tuple[fx.Node, ...]:
        """Values that its kernels write, and read again."""
        return ()

    @property
    def launches(self) -> int:
        """A scan reduces its chunks, walks them, and applies what it found."""
        return 3 if self.anchor == "scan" else 1

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
        return graph_of(dict(zip(self.inputs, self.operands, strict=True)), self.nodes, self.output)

    def function(self) -> Callable[..., Tensor]:
        """The region as a function of its inputs."""
        return function(self.graph())


def graph_of(
    inputs: Mapping[fx.Node, str], nodes: Iterable[fx.Node], output: fx.Node | tuple[fx.Node, ...]
) -> fx.Graph:
    """`nodes` by themselves, as a graph of `inputs` under these names."""
    graph = fx.Graph()
    env = {node: graph.placeholder(name) for node, name in inputs.items()}
    for node in nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(fx.node.map_arg(output, env.__getitem__))
    return graph


def function(graph: fx.Graph) -> Callable[..., Tensor]:
    """A graph as a function; what has a backward of its own is a module inside, so that another process can have it too."""
    root = nn.Module()
    for node in [n for n in graph.nodes if isinstance(n.target, Apply)]:
        root.add_module(f"own_{node.name}", Owned(node.target.function))
        with graph.inserting_before(node):
            new = graph.call_module(f"own_{node.name}", node.args)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    found: Callable[..., Tensor] = fx.GraphModule(root, graph).forward
    return found


def named(nodes: Iterable[fx.Node]) -> list[str]:
    """The names of nodes, numbered among themselves."""
    names = [re.sub(r"_\d+$", "", n.name) or "x" for n in nodes]
    names = [f"{n}_value" if hasattr(builtins, n) or n in ("torch", "device", "inf", "nan") else n for n in names]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}_{n}" if n else name for name, n in zip(names, before, strict=True)]
