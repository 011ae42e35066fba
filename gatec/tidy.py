"""Small changes that leave a graph's meaning alone: dead code out, child modules copied into their parent."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from gatec.capture.around import first, with_first
from gatec.capture.examples import pretending, whole
from gatec.capture.guards import SELF, hold, writes
from gatec.capture.shell import OWN
from gatec.capture.structure import PLAIN
from gatec.errors import Refused
from gatec.match.terms import join


def dead(graph: fx.Graph) -> None:
    """Remove what nobody reads. fx's own elimination also deletes in-place method calls; this one never does."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or node.target is hold or writes(node):
            continue
        if node.op == "call_module" and "val" not in node.meta:
            continue
        graph.erase_node(node)


def examples(module: nn.Module, graph: fx.Graph) -> None:
    """Give every node that lacks one an example of its value, computed without data from those of its inputs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in graph.nodes:
        if "val" in node.meta or node.op in ("placeholder", "output") or node.target in (OWN, first, with_first):
            continue
        if any("val" not in n.meta for n in node.all_input_nodes):  # behind a shell whose result is not known
            continue
        node.meta["val"] = example(module, node, mode)


def example(module: nn.Module, node: fx.Node, mode: FakeTensorMode) -> Any:
    """An example of what one node computes from those of its inputs."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: tree_map(lambda v: _blank(v, mode), n.meta["val"])
    )
    with pretending(mode):
        if node.op == "call_module":
            return whole(module.get_submodule(str(node.target)), args, kwargs, lambda p: _blank(p, mode))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _blank(value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, Tensor):
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def inline(graph: fx.Graph, path: str, child: fx.Graph) -> None:
    """Replace the one call of the child module at `path` by the nodes of its graph."""
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == path]
    if len(calls) != 1:
        raise Refused(f"{path} is called {len(calls)} times by the module around it")
    spread(graph, calls[0], child)


def spread(graph: fx.Graph, call: fx.Node, child: fx.Graph) -> None:
    """Replace one call of a child module by the nodes of its graph."""
    path = str(call.target)
    with graph.inserting_before(call):
        feed = list(_leaves(graph, (call.args, call.kwargs)))
        env: dict[fx.Node, Any] = {}
        for node in child.nodes:
            if node.op == "placeholder":
                env[node] = feed.pop(0)
            elif node.op == "output":
                _replace(graph, call, fx.node.map_arg(node.args[0], lambda n: env[n]))
            else:
                env[node] = graph.node_copy(node, lambda n: env[n])
                if node.op in ("call_module", "get_attr"):
                    env[node].target = join(path, str(node.target))
                elif node.args and node.args[0] is SELF:  # what it does to its module, it does to the child
                    env[node].args = (SELF, join(path, str(node.args[1])), *env[node].args[2:])


def _leaves(graph: fx.Graph, arg: Any) -> Iterator[fx.Node]:
    if isinstance(arg, fx.Node):
        yield from _expand(graph, arg)
    elif isinstance(arg, (tuple, list)):
        for a in arg:
            yield from _leaves(graph, a)
    elif isinstance(arg, dict):
        for a in arg.values():
            yield from _leaves(graph, a)


def _expand(graph: fx.Graph, node: fx.Node) -> Iterator[fx.Node]:
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            part = graph.call_function(_item, (node, i))
            part.meta["val"] = item
            yield from _expand(graph, part)
    elif isinstance(value, Tensor) or not isinstance(value, PLAIN):
        yield node


def _item(values: Any, index: int) -> Any:
    return values[index]


def _replace(graph: fx.Graph, call: fx.Node, output: Any) -> None:
    if isinstance(output, fx.Node):
        call.replace_all_uses_with(output)
    else:
        for user in list(call.users):
            if user.op != "call_function" or len(user.args) != 2 or not isinstance(user.args[1], int):
                raise Refused(f"what {call.target} returns is used as a whole by {user.name}")
            user.replace_all_uses_with(output[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(call)
