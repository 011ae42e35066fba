"""One forward sweep of value numbering over a module's graph and the graphs of its children.

Views that keep the last dimension, casts and inactive dropout vanish; products and sums are flattened; packed
projections become row ranges of one Linear; activations have one name however they are written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture import Call, inside, unit_of
from gatec.capture.around import first, with_first
from gatec.capture.guards import writes
from gatec.capture.shell import OWN
from gatec.capture.structure import PLAIN
from gatec.match.spelling import layer, name_of, overwrites, spelled
from gatec.match.terms import Buffer, Table, Term, join, shape_of, storage

Place = tuple[str, fx.Node]  # module path, node of that module's graph


@dataclass
class Canon:
    """The terms of one module and everything below it that was captured.

    `graph_of(path)` gives a captured graph or None; `module_of(path)` the live module. `carriers` says which nodes, at
    which levels of the module tree, hold a term.
    """

    graph_of: Callable[[str], fx.Graph | None]
    module_of: Callable[[str], nn.Module]
    shells: bool = True  # whether what was put at the boundaries of modules is looked at
    graph_for: Callable[[str, fx.Node], fx.Graph | None] | None = None  # of a call of another form than the first
    table: Table = field(default_factory=Table)
    carriers: dict[Term, list[Place]] = field(default_factory=dict)
    terms: dict[Place, Term] = field(default_factory=dict)
    stale: set[Term] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    inner: list[tuple[fx.Node, Term]] = field(default_factory=list)  # what the last module call wrote to
    swept: set[str] = field(default_factory=set)
    nested: set[str] = field(default_factory=set)  # swept as part of a parent's graph
    written: dict[str, Term] = field(default_factory=dict)  # parameters and buffers that were written to
    left: list[Term] = field(default_factory=list)  # what the last sweep's inputs hold at its end
    opened: dict[Term, Term] = field(default_factory=dict)  # calls with a backward of their own, and what they compute
    uses: Counter[str] = field(default_factory=Counter)  # how often code calls a module or reads a parameter

    def run(self, path: str, graph: fx.Graph) -> None:
        """Number a graph by itself. Dynamo passes parameters and buffers as inputs: they are that all the same."""
        self.sweep(path, graph, [self._input(path, n) for n in graph.nodes if n.op == "placeholder"])

    def _input(self, path: str, node: fx.Node) -> Term:
        kept = re.match("l_self_(.*_)?buffers_", node.name)
        if kept or isinstance(node.meta.get("val"), nn.Parameter):
            name = re.sub("(_|^)(l_self|modules|parameters|buffers)_(?=[^_])", ".", node.name).strip("._")
            name = join(path, name.replace("..", "."))
            return self.table.make("param", data=Buffer(name) if kept else name, shape=shape_of(node))
        return self.table.fresh(f"{path}:{node.name}", shape_of(node))

    def _count(self, path: str, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and node.target != OWN:
                self.uses[join(path, str(node.target))] += 1 if node.op == "call_module" else len(node.users)

    def sweep(self, path: str, graph: fx.Graph, inputs: list[Term]) -> Any:
        """Number every node of one graph; returns the structure of its outputs with terms for nodes."""
        if path not in self.swept:
            self._count(path, graph)
        self.swept.add(path)
        env: dict[fx.Node, Term] = {}
        feed = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "output":
                self.left = [t for n, t in env.items() if n.op == "placeholder"]
                result: Any = node.args[0]
                term_of: Any = env.__getitem__
                return fx.node.map_arg(result, term_of)
            else:
                env[node] = self.number(path, node, env)
                for target, term in self._writes(path, node, env):
                    self._written(path, node, target, term, env)
            self.carriers.setdefault(env[node], []).append((path, node))
            self.terms[path, node] = env[node]
        return None

    def _writes(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> list[tuple[fx.Node, Term]]:
        """The nodes whose memory one node writes to, and what they hold then."""
        if node.op == "call_module":
            found, self.inner = self.inner, []
            return found
        if not (writes(node) or overwrites(node)):
            return []
        targets = [node.kwargs["out"]] if "out" in node.kwargs else node.all_input_nodes[:1]
        return [(t, env[node]) for t in targets if isinstance(t, fx.Node)]

    def _written(self, path: str, node: fx.Node, target: fx.Node, term: Term, env: dict[fx.Node, Term]) -> None:
        """After an in-place write its target holds the result, and whatever shares its memory holds something new."""
        memory = storage(target)
        self.stale.add(env[target])
        for other, held in list(env.items()):
            shares = memory is not None and storage(other) == memory
            if other is target or (shares and other is not node and _whole(other, target)):
                env[other] = term
            elif other is not node and shares:
                self.stale.add(held)
                env[other] = self.table.fresh(f"written:{node.name}:{other.name}", shape_of(other))
            else:
                continue
            if other.op == "get_attr":
                self.written[join(path, str(other.target))] = env[other]

    # -- one node -----------------------------------------------------------------------------------------------

    def number(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        if node.op == "get_attr":
            name = join(path, str(node.target))
            value = _literal(node)
            if value is not None:
                return self.table.const(value)
            held = name if _learned(node) else Buffer(name)
            return self.written.get(name) or self.table.make("param", data=held, shape=shape_of(node))
        if node.op == "call_module":
            return self._own(path, node, env) if node.target == OWN else self._module(path, node, env)
        if node.target in (first, with_first):  # whole(y) is what a module returned, y its first tensor
            term = env[node.all_input_nodes[-1]]
            return term.args[0] if node.target is first else self.table.make("whole", term)
        value = node.meta.get("val")
        if all(isinstance(v, (int, float)) for v in (value if isinstance(value, tuple) else (value,))):
            return self._size(node, value, env)
        try:
            found = spelled(self.table, node, lambda a: self.argument(a, env))
        except (TypeError, ValueError, IndexError, KeyError, AttributeError):
            found = None  # a call form that the table does not know is an operation that it does not know
        return found or self._applied(path, node, env)

    def _applied(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        """An operation that no table knows; of a torch.autograd.Function its forward is known beside it."""
        graph, found = inside(node), None
        feed = (env[n] for n in node.args if isinstance(n, fx.Node))
        own: dict[fx.Node, Term] = {}
        for n in graph.nodes if graph is not None else ():
            if n.op == "output":
                found = own[n.args[0]] if isinstance(n.args[0], fx.Node) else None
            else:
                own[n] = next(feed) if n.op == "placeholder" else self.number(path, n, own)
        term = self._unknown(path, node, env, found)
        if found is not None:
            self.opened[term] = found
        return term

    def _size(self, node: fx.Node, value: Any, env: dict[fx.Node, Term]) -> Term:
        """A number that the graph computes from sizes: two that are computed alike are the same."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        how = repr(fx.node.map_arg((node.args, node.kwargs), lambda n: "."))
        return self.table.make("size", *(env[n] for n in node.all_input_nodes), data=(name, how, value))

    def argument(self, arg: Any, env: dict[fx.Node, Term]) -> Any:
        """A node as its term, a tuple or list of nodes as a tuple of terms, anything else as itself."""
        if isinstance(arg, fx.Node):
            return env[arg]
        if isinstance(arg, (tuple, list)):
            return tuple(self.argument(a, env) for a in arg)
        if isinstance(arg, slice):
            return slice(*(self.argument(a, env) for a in (arg.start, arg.stop, arg.step)))
        return arg

    def _unknown(self, path: str, node: fx.Node, env: dict[fx.Node, Term], opened: Term | None = None) -> Term:
        args = [env[n] for n in node.all_input_nodes]
        name = name_of(node) or getattr(node.target, "__name__", str(node.target))
        data = (path, node.name, len(self.table.terms), *([opened] if opened is not None else []))
        return self.table.make(f"call:{name}", *args, data=data, shape=shape_of(node))

    def _module(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        child = join(path, str(node.target))
        unit = unit_of(self.module_of(child))
        if unit is None or not unit.outer or not self.shells:
            return self._inside(child, node, env)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
        shell = unit.shell(self.module_of(child), Call(args, kwargs, node.meta.get("val")))
        return self._nested(child, shell, node, env)

    def _own(self, path: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        """A module's call of itself inside its shell."""
        return self.table.make("whole", self._first(self._inside(path, node, env)))

    def _first(self, term: Term) -> Term:
        return self._first(term.args[0]) if term.op == "tuple" and term.args else term

    def _inside(self, child: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        module = self.module_of(child)
        x = env.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        found = layer(self.table, child, module, x, shape_of(node.args[0]), shape_of(node)) if x is not None else None
        if found is not None:
            self._computed(child, module)
            self.inner = [(node.all_input_nodes[0], found)] if getattr(module, "inplace", False) else []
            return found
        graph = self.graph_of(child)
        return self._nested(child, graph, node, env) if graph is not None else self._gap(child, node, env)

    def _computed(self, child: str, module: nn.Module) -> None:
        """Weights that are computed from others belong to their layer, and are looked at by themselves."""
        for name in getattr(module, "parametrizations", ()):
            path = join(child, f"parametrizations.{name}")
            if path not in self.swept and path not in self.gaps:
                self.gaps.append(path)

    def _nested(self, child: str, graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        shell = any(n.target == OWN for n in graph.nodes)  # it takes constants, too
        inputs = list(self._leaves((node.args, node.kwargs), env, shell))
        if not _takes(graph, len(inputs)):
            found = self.graph_for(child, node) if self.graph_for is not None and not shell else None
            if found is None or not _takes(found, len(inputs)):
                return self._gap(child, node, env)
            graph = found
        self.nested.add(child)
        output = self.sweep(child, graph, inputs)
        changed = {a: b for a, b in zip(inputs, self.left, strict=True) if a is not b}
        self.inner = [(n, changed[env[n]]) for n in node.all_input_nodes if env[n] in changed]
        return self._packed(output, node)

    def _gap(self, child: str, node: fx.Node, env: dict[fx.Node, Term]) -> Term:
        self.gaps.append(child)
        args = [env[n] for n in node.all_input_nodes]
        name = f"module:{type(self.module_of(child)).__name__}"
        return self.table.make(name, *args, data=(child, len(self.table.terms)), shape=shape_of(node))

    def _packed(self, output: Any, node: fx.Node) -> Term:
        if isinstance(output, Term):
            return self._opened(output, node.meta.get("val")) if output.op == "whole" else output
        if isinstance(output, (tuple, list)):
            return self.table.make("tuple", *(self._packed(o, node) for o in output))
        return self.table.const(output) if isinstance(output, PLAIN) else self.table.fresh(f"returned:{node.name}")

    def _opened(self, whole: Term, value: Any) -> Term:
        """What came through a shell, in the structure that the caller sees; of its tensors only the first is known."""
        if isinstance(value, Tensor):
            return whole.args[0]
        if not isinstance(value, (tuple, list)) or not value:
            return whole
        rest = [self.table.make("item", whole, data=i) for i in range(1, len(value))]
        return self.table.make("tuple", self._opened(whole, value[0]), *rest)

    def _leaves(self, arg: Any, env: dict[fx.Node, Term], constants: bool) -> Iterator[Term]:
        if isinstance(arg, fx.Node):
            yield from self._expand(env[arg], arg.meta.get("val"), constants)
        elif isinstance(arg, (tuple, list)):
            for a in arg:
                yield from self._leaves(a, env, constants)
        elif isinstance(arg, dict):
            for a in arg.values():
                yield from self._leaves(a, env, constants)
        elif constants:
            yield self.table.const(arg)

    def _expand(self, term: Term, value: Any, constants: bool) -> Iterator[Term]:
        if isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                part = term.args[i] if term.op == "tuple" else self.table.make("item", term, data=i)
                yield from self._expand(part, item, constants)
        elif constants or isinstance(value, Tensor) or not isinstance(value, PLAIN):
            yield term


def _takes(graph: fx.Graph, inputs: int) -> bool:
    return len(graph.find_nodes(op="placeholder")) == inputs


def _whole(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes are the same elements of one memory, however they are shaped."""
    first: Tensor = a.meta["val"]
    second: Tensor = b.meta["val"]
    whole = all(v.is_contiguous() and v.dtype == first.dtype for v in (first, second))
    return whole and first.storage_offset() == second.storage_offset() and first.numel() == second.numel()


def _learned(node: fx.Node) -> bool:
    """Whether what a graph reads is a parameter: torch's exporters leave that only on the module that owns the graph."""
    return any(isinstance(value, nn.Parameter) for value in (_stored(node), node.meta.get("val")))


def _stored(node: fx.Node) -> Any:
    """What stands on the module that owns the graph."""
    value: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value


def _literal(node: fx.Node) -> float | None:
    """The number in a tensor that was written into a traced function: torch's own tracers keep it as an attribute."""
    name = str(node.target).rpartition(".")[2]
    value = _stored(node) if name.startswith(("_tensor_constant", "lifted_tensor")) else None
    return float(value) if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta else None
