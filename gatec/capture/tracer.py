"""A torch.fx tracer whose proxies carry example values.

It answers Python's questions about sizes from the example and writes the answer into the graph as a `hold`; it refuses
what depends on data. Child modules stay calls: a graph speaks only of its own module's forward.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes as alone

from gatec.capture.chance import same_chance
from gatec.capture.examples import Examples, NotSettled, settled
from gatec.capture.guards import SELF, Constant, Made, ask, called, element, hoist, hold
from gatec.capture.outside import flags, forbidden, methods, unchanged
from gatec.capture.patches import grad_enabled, honest, injected, replaced
from gatec.capture.record import Call
from gatec.capture.results import containers, listed, returned
from gatec.capture.spies import Watch, looked_into
from gatec.capture.state import TABLES, Counts, Place, State, forms, put_back
from gatec.capture.stateless import stateless, tensors
from gatec.capture.structure import FUNCTIONS, PLAIN, flatten, foreign, rebuild, twins
from gatec.capture.values import Number, Opaque, Value, where
from gatec.capture.watchdog import Endless, monotonic, watchdog
from gatec.errors import Refused, in_short

STEPS = 100_000  # nodes of one graph
SECONDS = 60.0  # of one trace
ENDLESS = "its forward never ends for the tracer"


class Tracer(fx.Tracer):
    def __init__(
        self, known: Callable[[str, Call], Call | None] | None, counters: frozenset[Place], numbers: bool
    ) -> None:
        super().__init__()
        self.known, self.counters, self.numbers = known, counters, numbers
        self.examples = Examples(self)
        self.decided: dict[fx.Node, Any] = {}
        self.asked: set[str] = set()
        self.busy = False
        self.proxies: dict[int, Value] = {}
        self.swaps: dict[int, Any] = {}  # what stands in a parameter's place during functional_call, by its id
        self.cut: dict[fx.Node, fx.Node] = {}  # values without their gradient, for what is computed under no_grad
        self.contents: list[Any] = []  # lists and dicts on the modules, which nothing may change for good
        self.watched: Callable[[], AbstractContextManager[None]] = nullcontext
        self.refused: list[Refused] = []
        self.told_form = False  # Python heard the dtype or the device of something that parameters may decide
        self.casts: dict[int, fx.Node] = {}
        self.making = False  # objects that leave the forward may be built again, those that it hands on may not
        self.ambient_grad = grad_enabled()
        self.started = monotonic()

    # -- values -------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Value:
        return Value(node, self)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.create_proxy("call_function", function, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
                     type_expr: Any = None, proxy_factory_fn: Any = None) -> Any:  # fmt: skip
        self._budget()
        given = self.create_arg(args), self.create_arg(kwargs)
        alone = kind.startswith("call") and not grad_enabled()
        if alone:
            given = fx.node.map_arg(given, self._alone)
        example, pure = self.examples.of(kind, target, args, kwargs)
        if pure:
            kind, target, given = "call_function", ask, ((given[0][0], target, *given[0][1:]), given[1])
        node = self.create_node(kind, target, *given, name)
        if alone and isinstance(example, Tensor) and kind != "call_module":
            self.cut[node] = node
        value = self.wrapped(node, example)
        if alone and kind == "call_module" and isinstance(example, Tensor):
            value = self.proxy(self._alone(node))
            value.example = example
        return value

    def wrapped(self, node: fx.Node, example: Any) -> Any:
        """The node's value as the user's code sees it: a proxy, or what Python can only have as itself."""
        node.meta["val"], node.meta["where"] = example, where()
        if isinstance(example, VIEWS):
            return self.create_proxy("call_function", list, (self._value(node, example, Opaque),), {})
        if isinstance(example, (Tensor, tuple, list, dict, slice, int, float, complex)):
            return self._value(node, example, Value)
        if example is None or isinstance(example, PLAIN):
            if node.target in (ask, getattr) or (node.op == "call_method" and self._of_object(node)):
                self._hold(node, example)
            return example
        return self._value(node, example, _opaque(type(example)))

    def _value(self, node: fx.Node, example: Any, kind: type[Value]) -> Value:
        value = (Number if kind is Value and isinstance(example, (int, float)) else kind)(node, self)
        value.example = example
        return value

    def _of_object(self, node: fx.Node) -> bool:
        return (
            not isinstance(node.all_input_nodes[0].meta.get("val"), (Tensor, *PLAIN)) if node.all_input_nodes else False
        )

    def _alone(self, node: fx.Node) -> fx.Node:
        """The node without its gradient, as everything is that is computed under torch.no_grad."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return node
        if node not in self.cut:
            self.cut[node] = new = self.create_node("call_method", "detach", (node,), {})
            self.cut[new] = new
            new.meta.update(val=self.examples.view(value), where=where())
        return self.cut[node]

    def _budget(self) -> None:
        if len(self.graph.nodes) > STEPS:
            raise Refused(f"its forward takes more than {STEPS:,} steps")
        if monotonic() - self.started > SECONDS:
            raise Refused(ENDLESS)

    def decide(self, value: Value) -> Any:
        """The example's answer to a question that Python asks; the graph holds it from now on."""
        answer = value.example
        if isinstance(answer, Tensor):
            return self._settled(value.node)
        if isinstance(answer, (tuple, list, dict)):
            return len(answer) > 0
        if value.node not in self.decided:
            self.decided[value.node] = answer
            self._hold(value.node, answer)
        return answer

    def settles(self, value: Value) -> bool:
        """Whether sizes alone decide what the value is."""
        try:
            settled(value.node)
        except NotSettled:
            return False
        return True

    def _settled(self, node: fx.Node) -> Tensor:
        """The value of a tensor that only sizes decide, such as a mask of positions; the graph holds it."""
        try:
            found: Tensor = settled(node)
        except NotSettled:
            raise Refused("Python asks for the value of a tensor in it, which depends on data") from None
        if node not in self.decided:
            self.decided[node] = found
            item = self.create_node("call_method", "item", (node,), {})
            item.meta["val"] = found.item()
            self._hold(item, found.item())
        return found

    def gradient(self, value: Value, name: str) -> Any:
        """`requires_grad` or `is_leaf` of a computed value: examples are computed without gradients, so its sources tell."""
        self.asked.add("grad")
        needs = self.ambient_grad and self._needs_gradient(value.node)
        node = self.create_node("call_function", getattr, (value.node, name), {})
        return self.wrapped(node, needs if name == "requires_grad" else not needs)

    def _needs_gradient(self, node: fx.Node) -> bool:
        seen: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            value = node.meta.get("val")
            if node in seen or node.target == "detach" or self.cut.get(node) is node:
                continue
            seen.add(node)
            if node.op in ("placeholder", "get_attr"):
                if isinstance(value, Tensor) and value.requires_grad:
                    return True
            elif node.op == "call_module" and any(
                p.requires_grad for p in self.root.get_submodule(str(node.target)).parameters()
            ):
                return True
            waiting += node.all_input_nodes
        return False

    def _hold(self, node: fx.Node, answer: Any) -> None:
        self.effect(hold, node, answer, where())

    def effect(self, function: Callable[..., None], *args: Any) -> None:
        """A node whose value nobody reads."""
        self.create_node("call_function", function, args, {}).meta["val"] = None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with self.examples.quiet():
            yield

    # -- what fx asks -------------------------------------------------------------------------------------------

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.busy:
            return forward(*args, **kwargs)
        if self.swapped(module):
            return forward(*args, **kwargs)
        path = self.state.paths.get(module)
        if path == "":
            if module._forward_hooks or module._forward_pre_hooks:
                raise Refused("it calls itself, and has hooks")
            return self.forward(module, *args, **kwargs)
        if path is None and (place := self.state.find(module, nn.Module)):
            return self.call(called, self.call(element, SELF, *place), *args, **kwargs)
        if path is None:  # made at call time: trace through it
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", path, args, kwargs)

    def swapped(self, module: nn.Module) -> bool:
        """Whether something else stands in the place of one of a module's parameters: its own code must be seen."""
        return bool(self.swaps) and any(id(t) in self.swaps for t in tensors(module).values())

    def attribute(self, value: Any) -> Any:
        """A parameter or a buffer as a proxy, always the same one; what torch does not know stays itself."""
        if not self.busy and id(value) in self.swaps:
            return self.swaps[id(value)]
        if self.busy or not isinstance(value, Tensor) or not self.state.find(value, Tensor):
            return value
        if id(value) not in self.proxies:
            self.proxies[id(value)] = self.held(value)
        return self.proxies[id(value)]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            return self.create_arg(self.swaps[id(a)]) if id(a) in self.swaps else self._held(a)
        if isinstance(a, nn.Module):
            path = self.state.paths.get(a)
            if path is None:
                raise Refused("it hands a module that it does not own to a function that gatec keeps whole")
            return self.known_node("get_attr", path, (), a) if path else SELF
        if isinstance(a, (type, *FUNCTIONS)):
            return self.known_node("call_function", Constant(a), (), a)
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, TABLES) and (node := self.state.node(a, a, *TABLES)):
            return node
        if not self.making and looked_into(a) and (node := self.state.node(a, a, type(a))):
            return node
        if a is SELF or type(a) in SPECIAL or (isinstance(a, PLAIN) and not isinstance(a, (slice, range))):
            return a
        try:
            return self.made(a) if self.making and hasattr(a, "__dict__") else super().create_arg(a)
        except NotImplementedError:
            raise Refused(f"it hands on an object of type {type(a).__name__} that it made") from None

    def held(self, tensor: Tensor) -> Value:
        node = self._held(tensor)
        return self._value(node, node.meta["val"], Value)

    def _held(self, tensor: Tensor) -> fx.Node:
        """A tensor that stands somewhere on the modules, or among the globals that the forward names."""
        node: fx.Node | None = self.state.node(tensor, self.examples.fake(tensor), Tensor)
        if node is None:
            raise Refused("it uses a tensor that is no parameter, buffer or attribute of the module")
        return node

    def known_node(self, kind: str, target: Any, args: tuple[Any, ...], example: Any) -> fx.Node:
        node = self.create_node(kind, target, args, {})
        node.meta.update(val=example, where=where())
        return node

    def made(self, thing: Any) -> fx.Node:
        """An object of the user's own class that the forward made, built again by the graph."""
        if not hasattr(thing, "__dict__") or callable(thing) or isinstance(thing, (tuple, list, dict, set)):
            raise NotImplementedError
        was, self.making = self.making, True
        try:
            state = self.create_arg(dict(vars(thing)))
        finally:
            self.making = was
        return self.known_node("call_function", Made(type(thing)), (state,), None)

    def run(self, root: nn.Module, forward: Callable[..., Any], example: Call) -> fx.Graph:
        """The trace itself, as fx does it, but for its walk over every tensor of the model."""
        self.example, self.forward, self.root = example, forward, root
        self.graph, self.tensor_attrs = fx.Graph(tracer_cls=Tracer), {}
        self.graph._graph_namespace.create_name("self", None)  # the module's, which a child may be called too
        self.state = State(self, root, forward, self.counters)
        patches = [*self.patches()]
        with (
            torch.enable_grad(),
            Refused.heard(self.hear),
            replaced(patches),
            Watch(self) as self.watch,
            injected(root, patches),
        ):
            self.watch.classes({type(m) for m in root.modules()})
            args, kwargs = self.placeholders()
            before = dict(containers((args, kwargs)))
            with self.watched():
                result = forward(root, *args, **kwargs)
            if self.refused:
                raise self.refused[0]  # the forward caught it, and went another way than it goes by itself
            changed = next((c for c, items in before.values() if items != listed(c)), None)
            if changed is not None:
                raise Refused(f"its forward changes a {type(changed).__name__} that it was given")
            self.state.stored(self.contents)
            self.create_node("output", "output", (self.create_arg(returned(self, result)),), {})
        return self.graph

    def hear(self, refusal: Refused) -> None:
        if not self.busy:
            self.refused.append(refusal)

    def patches(self) -> Iterator[tuple[Any, str, Any]]:
        yield from honest(self)
        yield from stateless(self)
        yield from forbidden(self)
        call, get = nn.Module.__call__, nn.Module.__getattr__

        def called_module(module: Any, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(module, lambda *a, **k: call(module, *a, **k), args, kwargs)

        yield nn.Module, "__call__", called_module
        yield nn.Module, "__getattr__", lambda module, name: self.attribute(get(module, name))
        yield fx._symbolic_trace, "_is_fx_tracing_flag", True

    def placeholders(self) -> tuple[Any, Any]:
        """The arguments of the call with a proxy for every leaf; leaves that are one object have one proxy."""
        given = flatten(self.example.args, self.example.kwargs, self.numbers).leaves
        made = [self._placeholder(x) for x in given]
        args, kwargs = rebuild(
            (self.example.args, self.example.kwargs), iter([made[i] for i in twins(given)]), self.numbers
        )
        return args, kwargs

    def _placeholder(self, example: Any) -> Value:
        if isinstance(example, Tensor) and foreign(example):
            raise Refused(f"it is given a tensor of class {type(example).__name__}")
        node = self.create_node("placeholder", f"x{len(self.graph.nodes)}", (), {})
        known = isinstance(example, (Tensor, int, float))
        node.meta["val"] = example = self.examples.fake(example) if known else self.examples.spare(example)
        return self._value(node, example, Value if known else _opaque(type(example)))


SPECIAL = {torch.finfo, torch.iinfo}
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()), map, filter, zip)


class Trace(NamedTuple):
    """A graph, what its Python asked about its surroundings, and which attributes (child, name) it read."""

    graph: fx.Graph
    asked: frozenset[str]
    reads: frozenset[Place]


def trace(module: nn.Module, forward: Callable[..., Any], call: Call,
          known: Callable[[str, Call], Call | None] | None = None, numbers: bool = False) -> Trace:  # fmt: skip
    """The graph of one call of `module`.

    Tensors and unknown objects among the arguments become placeholders in the order of `flatten`, with `numbers` ints
    and floats too; everything else is baked in. Raises Refused, in words, where the call depends on data or on what the
    tracer cannot see.
    """
    counters: frozenset[Place] = frozenset()
    while True:
        tracer = Tracer(known, counters, numbers)
        try:
            with (
                watchdog(SECONDS) as tracer.watched,
                unchanged(forward, type(module)),
                put_back(module) as tracer.contents,
                same_chance(),
                alone(),  # torch.export may be at work around this
            ):
                graph = tracer.run(module, forward, call)
            break
        except Counts as e:
            counters |= {e.place}
        except Endless as e:
            line = where(e.__traceback__)
            raise Refused(f"{ENDLESS} ({line})" if line else ENDLESS) from None
        except Refused as e:
            line = where(e.__traceback__)
            raise Refused(f"{e} ({line})" if line else str(e)) from None
        except Exception as e:
            line = where(e.__traceback__)
            raise Refused(f"the tracer met {in_short(e)}" + (f" ({line})" if line else "")) from e
    for node in graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = tracer.examples.fake(operator.attrgetter(str(node.target))(module))
    hoist(graph)
    if tracer.told_form:
        tracer.state.reads.update(forms(module))
    read = {*((":", n) for n in flags(forward, type(module))), *(("", n) for n in methods(forward, type(module)))}
    return Trace(graph, frozenset(tracer.asked), frozenset(tracer.state.reads | read))


def _opaque(kind: type) -> type[Opaque]:
    """A class of proxies that isinstance() takes for `kind`: a lie that only Python ever hears."""
    return type(f"Opaque{kind.__name__}", (Opaque,), {"__class__": property(lambda self: kind)})
