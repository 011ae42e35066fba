"""A torch.fx tracer whose proxies carry example values.

It answers Python's questions about sizes from the example and writes the answer into the graph as a `hold`; it refuses
what depends on data. Child modules stay calls: a graph speaks only of its own module's forward.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map

from gatec.capture.guards import hoist, hold
from gatec.capture.patches import asked_honestly, assigning_nothing, watched
from gatec.capture.record import Call
from gatec.capture.structure import PLAIN, flatten, rebuild
from gatec.capture.values import Opaque, Value, where
from gatec.errors import Refused


@contextmanager
def pretending(mode: FakeTensorMode) -> Iterator[None]:
    """Compute on tensors without data; autocast may not keep their casts, it would hand them to real calls."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with mode, torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class Tracer(fx.Tracer):
    proxy_buffer_attributes = True
    record_stack_traces = False

    def __init__(self, calls: Callable[[str, Call], Call | None] | None, mode: FakeTensorMode) -> None:
        super().__init__()
        self.known, self.mode = calls, mode
        self.decided: dict[fx.Node, Any] = {}
        self.asks_compiling = False
        self.busy = False
        self.reads: set[tuple[str, str]] = set()

    # -- values -------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Value:
        return Value(node, self)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.create_proxy("call_function", function, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
                     type_expr: Any = None, proxy_factory_fn: Any = None) -> Any:  # fmt: skip
        value: Any = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if kind not in ("placeholder", "output"):
            value.example = self.evaluate(kind, target, args, kwargs)
            if value.example is None or isinstance(value.example, (str, torch.dtype, torch.device)):
                return value.example
            value.node.meta["val"] = value.example
            value.node.meta["where"] = where()
        return value

    def evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(_example, args), tree_map(_example, kwargs)
        if kind == "get_attr":
            return self.fake(self.attribute(target))
        if kind == "call_module":
            known = self.known(target, Call(args, kwargs)) if self.known else None
            if known is not None:
                return self.fake(known.output)
            self.busy = True  # an opaque object would be written to by the child: let it write to a copy
            args, kwargs = tree_map(_spare, args), tree_map(_spare, kwargs)
            self.busy = False
        with self.quiet():
            try:
                if kind == "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                if kind == "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                return target(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException) as e:
                raise Refused(f"a size or a value in it depends on data ({e.func})") from None

    def _fake(self, t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if isinstance(t, FakeTensor):  # an example from another trace
            with self.mode:
                return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        return self.mode.from_tensor(t if t.is_leaf else t.detach().requires_grad_(t.requires_grad))

    def attribute(self, path: str) -> Any:
        """The parameter, buffer or attribute itself, not a proxy of it."""
        was, self.busy = self.busy, True
        try:
            return operator.attrgetter(path)(self.root)
        finally:
            self.busy = was

    def fake(self, value: Any) -> Any:
        """The same structure with tensors that have no data."""
        was, self.busy = self.busy, True
        try:
            return tree_map(self._fake, value)
        finally:
            self.busy = was

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Work on examples, with the traps for the user's forward out of the way."""
        was, self.busy = self.busy, True
        log = logging.getLogger("torch._subclasses.fake_tensor")
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it would report becomes a refusal in words
        try:
            with pretending(self.mode):
                yield
        finally:
            self.busy = was
            log.setLevel(level)

    def decide(self, value: Value) -> Any:
        """The example's answer to a question that Python asks; the graph holds it from now on."""
        answer = value.example
        if isinstance(answer, Tensor):
            raise Refused("Python asks for the value of a tensor in it, which depends on data")
        if isinstance(answer, (tuple, list, dict)):
            return len(answer) > 0
        if value.node not in self.decided:
            self.decided[value.node] = answer
            self.create_node("call_function", hold, (value.node, answer, where()), {})
        return answer

    # -- what fx asks -------------------------------------------------------------------------------------------

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return True

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.busy:
            return forward(*args, **kwargs)
        path = self.paths.get(module)
        if path is None:  # made at call time: trace through it
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", path, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.busy:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            path = self.tensors.get(id(a))
            if path is None:
                raise Refused("it uses a tensor that is no parameter, buffer or attribute of the module")
            return self.create_node("get_attr", path, (), {})
        if isinstance(a, nn.Module) and a in self.paths:
            raise Refused(f"it hands the module {self.paths[a] or 'self'} to a function that gatec keeps whole")
        if type(a) in SPECIAL:
            return a
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        def placeholder(example: Any) -> Any:
            kind = Value if isinstance(example, Tensor) else _opaque(type(example))
            value: Any = super(Tracer, self).create_proxy(
                "placeholder", f"x{len(self.graph.nodes)}", (), {}, proxy_factory_fn=lambda n: kind(n, self)
            )
            value.example = value.node.meta["val"] = self.fake(example)
            return value

        leaves = [placeholder(x) for x in flatten(self.example.args, self.example.kwargs).leaves]
        args, kwargs = rebuild((self.example.args, self.example.kwargs), iter(leaves))
        forward = self.forward

        def run() -> Any:
            return _returned(self, forward(self.root, *args, **kwargs))

        return run, []

    def run(self, root: nn.Module, forward: Callable[..., Any], example: Call) -> fx.Graph:
        self.example, self.forward = example, forward
        self.paths = {m: p for p, m in root.named_modules()}
        self.tensors = {id(v): f"{p}.{n}" if p else n for p, m in root.named_modules()
                        for n, v in (*vars(m).items(), *m._buffers.items()) if isinstance(v, Tensor)}  # fmt: skip
        with asked_honestly(self, root), watched(self, root):
            return super().trace(root)


SPECIAL = {torch.Size, torch.finfo, torch.iinfo}


class Trace(NamedTuple):
    """A graph, whether its Python asks if it is being compiled, and which attributes (child, name) it read."""

    graph: fx.Graph
    asks_compiling: bool
    reads: frozenset[tuple[str, str]]


def trace(module: nn.Module, forward: Callable[..., Any], call: Call,
          known: Callable[[str, Call], Call | None] | None = None) -> Trace:  # fmt: skip
    """The graph of one call of `module`.

    Tensors and unknown objects among the arguments become placeholders in the order of `flatten`; everything else is
    baked in. Raises Refused, in words, where the call depends on data or on what the tracer cannot see.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracer = Tracer(known, mode)
    try:
        with assigning_nothing(module):
            graph = tracer.run(module, forward, call)
    except Refused as e:
        line = where(e.__traceback__)
        raise Refused(f"{e} ({line})" if line else str(e)) from None
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError, IndexError) as e:
        line = next(iter(str(e).splitlines()), "")
        raise Refused(f"the tracer met {type(e).__name__}: {line[:200]}") from e
    for node in graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = tracer.fake(operator.attrgetter(str(node.target))(module))
    hoist(graph)
    return Trace(graph, tracer.asks_compiling, frozenset(tracer.reads))


def _example(value: Any) -> Any:
    return value.example if isinstance(value, Value) else value


def _spare(value: Any) -> Any:
    """A copy of an opaque object; tensors in it that are part of an autograd graph cannot be copied by themselves."""
    if isinstance(value, (Tensor, *PLAIN)):
        return value
    with mock.patch.object(Tensor, "__deepcopy__", lambda t, memo: t.detach().clone()):
        return copy.deepcopy(value)


def _opaque(kind: type) -> type[Opaque]:
    """A class of proxies that isinstance() takes for `kind`: a lie that only Python ever hears."""
    return type(f"Opaque{kind.__name__}", (Opaque,), {"__class__": property(lambda self: kind)})


def _returned(tracer: Tracer, value: Any) -> Any:
    """What a forward returns, with classes that fx would flatten to a dict built again by the graph."""
    if isinstance(value, Value) or value is None:
        return value
    if isinstance(value, dict) and type(value) is not dict:
        fields = {k: _returned(tracer, v) for k, v in value.items()}
        node = tracer.create_node("call_function", type(value), (), tracer.create_arg(fields))
        return tracer.proxy(node)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tracer.proxy(tracer.create_node("call_function", type(value), tracer.create_arg(tuple(value)), {}))
    if isinstance(value, (tuple, list)):
        return type(value)(_returned(tracer, v) for v in value)
    return value
