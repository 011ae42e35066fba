"""One forward sweep of value numbering over a module's graph and the graphs of its children.

Views that keep the last dimension, casts and inactive dropout vanish; products and sums are flattened; packed
projections become row ranges of one Linear; activations have one name however they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture.structure import PLAIN
from gatec.capture.tracer import writes
from gatec.match.spelling import layer, spelled
from gatec.match.terms import Table, Term, join, shape_of, storage

Place = tuple[str, fx.Node]  # module path, node of that module's graph


@dataclass
class Canon:
    """The terms of one module and everything below it that was captured.

    `graph_of(path)` gives a captured graph or None; `module_of(path)` the live module. `carriers` says which nodes, at
    which levels of the module tree, hold a term.
    """

    graph_of: Callable[[str], fx.Graph | None]
    module_of: Callable[[str], nn.Module]
    table: Table = field(default_factory=Table)
    carriers: dict[Term, list[Place]] = field(default_factory=dict)
    terms: dict[Place, Term] = field(default_factory=dict)
    stale: set[Term] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    swept: set[str] = field(default_factory=set)
    nested: set[str] = field(default_factory=set)  # swept as part of a parent's graph

    def run(self, path: str, graph: fx.Graph) -> None:
        inputs = [self.table.fresh(f"{path}:{n.name}", shape_of(n)) for n in graph.nodes if n.op == "placeholder"]
        self.sweep(path, graph, inputs)

    def sweep(self, path: str, graph: fx.Graph, inputs: list[Term]) -> Any:
        """Number every node of one graph; returns the structure of its outputs with terms for nodes."""
        self.swept.add(path)
        env: dict[fx.Node, Term] = {}
        feed = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: env[n])
            else:
                env[node] = self.number(path, node, env)
                if writes(node):
                    self._written(node, env)
            self.carriers.setdefault(env[node], []).append((path, node))
            self.terms[path, node] = env[node]
        return None

    def _written(self, node: fx.Node, env: dict[fx.Node, Term]) -> None:
        """After an in-place write its target holds the result, and whatever shares its memory holds something new."""
        target = node.all_input_nodes[0] if node.all_input_nodes else node
        memory = storage(target)
        for other, term in list(env.items()):
            if other is target:
                env[other] = env[node]
            elif other is not node and memory is not None and storage(other) == memory:
                self.stale.add(term)
                env[other] = self.table.fresh(f"written:{node.name}:{other.name}", shape_of(other))
        self.stale.update(t for n, t in env.items() if n is target)

    # -- one node -----------------------------------------------------------------------------------------------

    def number(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        if node.op == "get_attr":
            return self.table.make("param", data=join(path, str(node.target)), shape=shape_of(node))
        if node.op == "call_module":
            return self._module(path, node, env)
        try:
            found = spelled(self.table, node, lambda a: self.argument(a, env))
        except (TypeError, ValueError, IndexError, KeyError):
            found = None  # a call form that the table does not know is an operation that it does not know
        return found or self._unknown(path, node, env)

    def argument(self, arg: Any, env: dict[fx.Node, Term]) -> Any:
        """A node as its term, a tuple or list of nodes as a tuple of terms, anything else as itself."""
        if isinstance(arg, fx.Node):
            return env[arg]
        if isinstance(arg, (tuple, list)):
            return tuple(self.argument(a, env) for a in arg)
        if isinstance(arg, slice):
            return slice(*(self.argument(a, env) for a in (arg.start, arg.stop, arg.step)))
        return arg

    def _unknown(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        args = [env[n] for n in node.all_input_nodes]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return self.table.make(f"call:{name}", *args, data=(path, node.name, len(self.table.terms)), shape=shape_of(node))

    def _module(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        child = join(path, str(node.target))
        module = self.module_of(child)
        x = env.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        found = layer(self.table, child, module, x, shape_of(node)) if x is not None else None
        if found is not None:
            return found
        graph = self.graph_of(child)
        if graph is not None:
            inputs = list(self._leaves((node.args, node.kwargs), env))
            if len(inputs) == sum(n.op == "placeholder" for n in graph.nodes):
                self.nested.add(child)
                return self._packed(self.sweep(child, graph, inputs), node)
        self.gaps.append(child)
        args = [env[n] for n in node.all_input_nodes]
        return self.table.make(f"module:{type(module).__name__}", *args, data=(child, len(self.table.terms)), shape=shape_of(node))

    def _packed(self, output: Any, node: fx.Node) -> Term:
        if isinstance(output, Term):
            return output
        if isinstance(output, (tuple, list)):
            return self.table.make("tuple", *(self._packed(o, node) for o in output))
        return self.table.const(output) if isinstance(output, PLAIN) else self.table.fresh(f"returned:{node.name}")

    def _leaves(self, arg: Any, env: dict[fx.Node, Term]) -> Iterator[Term]:
        if isinstance(arg, fx.Node):
            yield from self._expand(env[arg], arg.meta.get("val"))
        elif isinstance(arg, (tuple, list)):
            for a in arg:
                yield from self._leaves(a, env)
        elif isinstance(arg, dict):
            for a in arg.values():
                yield from self._leaves(a, env)

    def _expand(self, term: Term, value: Any) -> Iterator[Term]:
        if isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                part = term.args[i] if term.op == "tuple" else self.table.make("item", term, data=i)
                yield from self._expand(part, item)
        elif isinstance(value, Tensor) or not isinstance(value, PLAIN):
            yield term
