"""A torch.fx tracer whose proxies carry example values.

It answers Python's questions about sizes from the example and writes the answer into the graph as a `hold`; it refuses
what depends on data. Child modules stay calls: a graph speaks only of its own module's forward.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
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

from gatec.capture.record import Call
from gatec.capture.structure import PLAIN, flatten, rebuild
from gatec.errors import Refused


class Miss(Exception):
    """A decision that a graph was captured under does not hold for this call."""


def hold(found: Any, wanted: Any, where: str) -> None:
    """Stop a graph whose Python decision at `where` (file:line) does not hold for the tensors at hand."""
    if found != wanted:
        raise Miss(where)


FACTORIES = ("arange", "zeros", "ones", "full", "empty", "tensor", "as_tensor", "eye", "linspace", "rand", "randn",
             "scalar_tensor", "tril_indices", "triu_indices")  # fmt: skip
CONCRETE = {"dtype", "device", "ndim", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested",
            "requires_grad", "names", "is_leaf", "is_mkldnn", "is_cpu", "is_mps", "is_xpu", "itemsize"}  # fmt: skip
CONCRETE_CALLS = {"dim", "ndimension", "is_floating_point", "is_complex", "element_size", "is_contiguous",
                  "get_device", "is_signed", "is_conj", "is_neg", "is_inference"}  # fmt: skip
DATA = {"item", "tolist", "numpy", "nonzero", "unique", "backward", "__array__", "equal", "allclose"}


class Value(fx.Proxy):
    """A proxy that knows an example of its value."""

    example: Any
    tracer: Tracer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        example = self.example
        if not isinstance(example, Tensor):
            found = getattr(example, name)
            return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)
        if name in CONCRETE:
            return getattr(example, name)
        if name in DATA:
            raise Refused(f"its result depends on the values of a tensor (.{name})")
        with self.tracer.quiet():
            found = getattr(example, name)
        return _Method(self, name) if callable(found) else self.tracer.call(getattr, self, name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.example, Tensor):
            return iter([self[i] for i in range(len(self))])
        if isinstance(self.example, dict):
            return iter(self.example)
        return iter([self[i] for i in range(len(self.example))])

    def __len__(self) -> int:
        if isinstance(self.example, Tensor):
            return int(self.tracer.decide(self.size(0)))
        return len(self.example)

    def __bool__(self) -> bool:
        return bool(self.tracer.decide(self))

    def __int__(self) -> int:
        return int(self.tracer.decide(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self))

    def __float__(self) -> float:
        return float(self.tracer.decide(self))

    def __hash__(self) -> int:
        return hash(self.tracer.decide(self)) if isinstance(self.example, PLAIN) else id(self)

    def __contains__(self, item: Any) -> bool:
        return any(bool(item == x) for x in self)

    def keys(self) -> Any:
        return self.example.keys()

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.call(operator.setitem, self, index, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "example"):
            raise Refused(f"it sets the attribute {name} of a tensor")
        object.__setattr__(self, name, value)

    def __invert__(self) -> Any:
        return self.tracer.call(operator.invert, self)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.call(operator.getitem, self, index)

    def __deepcopy__(self, memo: Any) -> Value:
        return self


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def method(self: Value, other: Any) -> Any:
        return self.tracer.call(function, self, other)

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(Value, f"__{_name}__", _in_place(_name))


class Opaque(Value):
    """An object that the graph hands on without looking into it, such as a KV cache."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Refused(f"it reads .{name} of an object of type {type(self.example).__name__}")

    def __bool__(self) -> bool:
        raise Refused(f"it asks an object of type {type(self.example).__name__} whether it is true")

    __len__ = __int__ = __index__ = __float__ = __iter__ = __bool__  # type: ignore[assignment]
    __hash__ = object.__hash__


class _Method:
    def __init__(self, owner: Value, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in CONCRETE_CALLS:
            return getattr(self.owner.example, self.name)(*args, **kwargs)
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


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


class Apply:
    """A torch.autograd.Function as a graph leaf, so that its own backward survives."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__, self.__module__ = function.__name__, function.__module__

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)


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
        with _asked_honestly(self, root), _watched(self, root):
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
        with _assigning_nothing(module):
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
    _hoist(graph)
    return Trace(graph, tracer.asks_compiling, frozenset(tracer.reads))


@contextmanager
def _assigning_nothing(root: nn.Module) -> Iterator[None]:
    """Put back what the forward assigns to its module; refuse it unless it is a buffer that was written in place."""
    modules = [("", root), *root.named_children()]
    before = [(p, m, dict(vars(m)), dict(m._buffers)) for p, m in modules]
    assigned = ""
    try:
        yield
        for path, module, plain, buffers in before:
            changed = [n for n, v in vars(module).items() if n not in plain or v is not plain[n]]
            changed += [
                n
                for n, v in module._buffers.items()
                if not _same_memory(v, f"{path}.{n}" if path else n, buffers.get(n))
            ]
            assigned = assigned or next((f"{path}.{n}" if path else n for n in changed), "")
    finally:
        for _, module, plain, buffers in before:
            vars(module).clear()
            vars(module).update(plain)
            module._buffers.clear()
            module._buffers.update(buffers)
    if assigned:
        raise Refused(f"its forward assigns self.{assigned}")


def _same_memory(now: Any, path: str, before: Any) -> bool:
    """Whether a buffer is still itself: untouched, or what an in-place operation on it gave back."""
    if not isinstance(now, Value):
        return now is before
    node = now.node
    while node.op != "get_attr" and writes(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" and node.target == path


def where(trail: types.TracebackType | None = None) -> str:
    """file:line of the user's code that is being traced, or that raised."""
    found, frame = "", sys._getframe(1) if trail is None else None
    while trail is not None:
        found = _line(trail.tb_frame, trail.tb_lineno) or found
        trail = trail.tb_next
    while frame is not None and not found:
        found, frame = _line(frame, frame.f_lineno), frame.f_back
    return found


def _line(frame: types.FrameType, number: int) -> str:
    file = frame.f_code.co_filename
    if file.startswith(OURS):
        return ""
    return f"{file.rpartition('site-packages/')[2]}:{number}"


OURS = (
    str(Path(__file__).parents[1]) + "/",
    str(Path(torch.__file__).parent) + "/",
    str(Path(mock.__file__).parent) + "/",
    contextlib.__file__,
    "<",
)


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


# -- what is patched while the user's forward runs --------------------------------------------------------------

_ORIGINAL = {n: getattr(torch, n) for n in FACTORIES if hasattr(torch, n)}
_ORIGINAL_APPLY = torch.autograd.Function.__dict__["apply"].__func__


@contextmanager
def _asked_honestly(tracer: Tracer, root: nn.Module) -> Iterator[None]:
    def factory(original: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs) if tracer.busy else tracer.call(original, *args, **kwargs)

        return made

    def compiling() -> bool:
        tracer.asks_compiling = tracer.asks_compiling or not tracer.busy
        return False

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.busy:
            return _ORIGINAL_APPLY(cls, *args, **kwargs)
        return tracer.create_proxy("call_function", Apply(cls), args, kwargs)

    def no_context(what: str, original: Any) -> Any:
        def enter(self: Any) -> Any:
            if not tracer.busy:
                raise Refused(f"it enters {what} inside its forward")
            return original(self)

        return enter

    with ExitStack() as stack:
        for name, original in _ORIGINAL.items():
            stack.enter_context(mock.patch.object(torch, name, factory(original)))
        stack.enter_context(mock.patch.object(torch.compiler, "is_compiling", compiling))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
        for owner, what in ((torch.no_grad, "torch.no_grad"), (torch.autocast, "torch.autocast")):
            stack.enter_context(mock.patch.object(owner, "__enter__", no_context(what, owner.__enter__)))
        for module in {type(m).__module__ for m in root.modules()}:
            if not module.startswith("torch.") and module in sys.modules:
                stack.enter_context(mock.patch.dict(vars(sys.modules[module]), {"isinstance": _isinstance}))
        yield


@contextmanager
def _watched(tracer: Tracer, root: nn.Module) -> Iterator[None]:
    """Note which plain attributes of the module and its children the forward reads: modules that agree on them share a trace."""
    watched = [("", root), *root.named_children()]
    kinds = [type(m) for _, m in watched]
    for (path, module), kind in zip(watched, kinds, strict=True):
        module.__class__ = _spy(kind, path, tracer)
    try:
        yield
    finally:
        for (_, module), kind in zip(watched, kinds, strict=True):
            module.__class__ = kind


def _spy(kind: type[nn.Module], path: str, tracer: Tracer) -> type[nn.Module]:
    def read(self: nn.Module, name: str) -> Any:
        if not name.startswith("_") and not tracer.busy and name in object.__getattribute__(self, "__dict__"):
            tracer.reads.add((path, name))
        return kind.__getattribute__(self, name)

    names = {"__getattribute__": read, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def _isinstance(value: Any, kind: Any) -> bool:
    """isinstance() that takes a proxy for what it stands for."""
    if isinstance(value, Value) and not isinstance(kind, fx.Proxy):
        return isinstance(object.__getattribute__(value, "example"), kind)
    return isinstance(value, kind)


# -- guards first -------------------------------------------------------------------------------------------------

SIZES: set[Any] = {getattr, operator.getitem, hold, *(getattr(operator, n) for n in (
    "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "neg", "truediv", "not_"
))}  # fmt: skip


def _hoist(graph: fx.Graph) -> None:
    """Move every decision that only reads sizes of arguments to the front, so that a miss costs nothing."""
    nodes = list(graph.nodes)
    early: set[fx.Node] = set()
    for node in nodes:
        sizes = node.op == "call_function" and node.target in SIZES
        sizes = sizes or (node.op == "call_method" and node.target in ("size", "numel", "__len__"))
        known = all(a.op == "placeholder" or a in early for a in node.all_input_nodes)
        if sizes and known and not isinstance(node.meta.get("val"), Tensor):
            early.add(node)
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in early and (node.target is hold or any(u in needed for u in node.users)):
            needed.add(node)
    last = [n for n in nodes if n.op == "placeholder"]
    anchor = last[-1] if last else None
    for node in nodes:
        if node in needed and anchor is not None:
            anchor.append(node)
            anchor = node
    touched, outside = False, _storages(n for n in nodes if n.op in ("placeholder", "get_attr"))
    for node in graph.nodes:
        if node.target is hold and touched:
            raise Refused(f"it decides something about sizes after it has written to its surroundings ({node.args[2]})")
        inside = node.op != "call_module" and not outside & _storages(node.all_input_nodes[:1])
        touched = touched or (writes(node) and not inside)


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    values = (n.meta.get("val") for n in nodes)
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}


def writes(node: fx.Node) -> bool:
    """Whether the node changes anything but its own result: in place, or through an object that is handed on."""
    if node.op == "call_module":
        return any(not isinstance(a.meta.get("val"), (Tensor, tuple, list, dict, *PLAIN)) for a in node.all_input_nodes)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        inplace = (name.endswith("_") and not name.startswith("_")) or (name.startswith("i") and hasattr(operator, name) and
                    getattr(operator, name) is node.target and name in INPLACE)  # fmt: skip
        return inplace or node.target is operator.setitem or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return False


INPLACE = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"}
