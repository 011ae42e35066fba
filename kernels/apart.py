"""Several graphs in one kernel: each with names of its own for what it computes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from gatec.kernels.spelling import spell


def spelled(graph: fx.Graph, prefix: str, renamed: Mapping[str, str]) -> tuple[list[str], list[str | None]]:
    """The lines of one graph, its own names made different from those of others; `renamed` are its operands."""
    copied, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op == "output":
            result = copied.output(fx.node.map_arg(node.args[0], env.__getitem__))
            result.meta = dict(node.meta)
            continue
        env[node] = copied.node_copy(node, env.__getitem__)
        if node.op == "call_function":
            env[node].name = f"{prefix}{node.name}"
    return spell(copied, renamed)
