"""What is patched while a user's forward is traced, so that Python's questions get honest answers."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper, lru_cache, wraps
from typing import Any

import torch
import torch._dynamo
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp import autocast_mode
from torch.utils._pytree import tree_leaves

from gatec.capture.structure import MISSING
from gatec.capture.values import Apply, Value
from gatec.errors import Refused

FACTORIES = ("arange", "zeros", "ones", "full", "empty", "tensor", "as_tensor", "from_numpy", "eye", "linspace", "logspace",
             "range", "rand", "randn", "randint", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "complex",
             "polar", "normal", "hann_window", "hamming_window", "blackman_window", "empty_strided")  # fmt: skip
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl", "module_call_wrapper")  # names under which a module is called
NUMBERS = ("sqrt", "ceil", "floor", "log", "log2", "log10", "exp", "pow", "prod", "sin", "cos")

_FACTORIES = {n: getattr(torch, n) for n in FACTORIES if hasattr(torch, n)}
_NUMBERS = {n: getattr(math, n) for n in NUMBERS}
grad_enabled = torch.is_grad_enabled  # itself, while the user's code gets another
ORIGINALS: dict[tuple[int, str], Any] = {}  # of what is patched on modules, by the module and the name there
_APPLY = torch.autograd.Function.__dict__["apply"]  # a descriptor, of Python or of C

QUESTIONS: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "compiling": (torch.compiler, "is_compiling", torch.compiler.is_compiling),
    "exporting": (torch.compiler, "is_exporting", torch.compiler.is_exporting),
    "onnx": (torch.onnx, "is_in_onnx_export", torch.onnx.is_in_onnx_export),
    "dynamo": (torch._dynamo, "is_compiling", torch._dynamo.is_compiling),
    "tracing": (torch.jit, "is_tracing", getattr(torch.jit, "is_tracing")),  # noqa: B009
    "grad": (torch, "is_grad_enabled", torch.is_grad_enabled),
}


def answers(asked: Iterator[str] | frozenset[str]) -> tuple[Any, ...]:
    """What the forward would hear now: whether it is being compiled, exported, run with gradients."""
    return tuple(QUESTIONS[name][2]() for name in sorted(asked))


def honest(tracer: Any) -> Iterator[tuple[Any, str, Any]]:
    """Patches of what makes tensors, asks about the surroundings or opens a context, for the time of one trace."""
    for name, original in _FACTORIES.items():
        yield torch, name, _made(tracer, original)
    for name, original in _NUMBERS.items():
        yield math, name, _of_sizes(tracer, original)
    for name, (owner, attribute, _) in QUESTIONS.items():
        yield owner, attribute, _asked(tracer, name)
    yield torch, "is_tensor", lambda x: _isinstance(x, Tensor)
    yield torch.autograd.Function, "apply", classmethod(_applied(tracer))
    yield torch.utils.checkpoint, "checkpoint", _checkpoint(tracer, torch.utils.checkpoint.checkpoint)
    yield torch.autocast, "__enter__", _enter(tracer, torch.autocast.__enter__)
    yield torch.autocast, "__exit__", _exit(tracer, torch.autocast.__exit__)
    yield torch.enable_grad, "__enter__", _gradients(tracer, torch.enable_grad.__enter__)
    yield torch.inference_mode, "__enter__", _inference(tracer, torch.inference_mode.__enter__)
    yield torch.inference_mode, "__exit__", _uninference(tracer, torch.inference_mode.__exit__)
    yield nn.Module, "_named_members", _members(tracer, nn.Module._named_members)


@contextmanager
def replaced(patches: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """These attributes of modules and classes replaced for a while; unittest.mock takes twenty times as long."""
    before: list[tuple[Any, str, Any]] = []
    for owner, name, _ in patches if not ORIGINALS else ():
        if isinstance(owner, types.ModuleType) and callable(getattr(owner, name)):
            ORIGINALS[id(owner), name] = getattr(owner, name)
    try:
        for owner, name, new in patches:
            before.append((owner, name, vars(owner).get(name, MISSING)))
            setattr(owner, name, new)
        yield
    finally:
        for owner, name, old in reversed(before):
            delattr(owner, name) if old is MISSING else setattr(owner, name, old)


def _made(tracer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if tracer.busy else tracer.call(original, *args, **kwargs)

    return made


def _of_sizes(tracer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """math.sqrt(x.shape[-1]) as a node, not as a decision."""

    def computed(*args: Any) -> Any:
        if tracer.busy or not any(isinstance(a, Value) for a in args):
            return original(*args)
        if original is math.prod:
            return original([*args[0]], *args[1:])
        return tracer.call(original, *args)

    return computed


def _asked(tracer: Any, name: str) -> Callable[[], Any]:
    original = QUESTIONS[name][2]

    def answer() -> Any:
        if tracer.busy:
            return original()
        tracer.asked.add(name)
        if name == "grad":
            return tracer.ambient_grad and original()
        return original() if name in ("onnx",) else False

    return answer


def _applied(tracer: Any) -> Callable[..., Any]:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.busy:
            return _APPLY.__get__(None, cls)(*args, **kwargs)
        return tracer.create_proxy("call_function", Apply(cls), args, kwargs)

    return apply


def _checkpoint(tracer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def checkpoint(function: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.busy:
            return original(function, *args, **kwargs)
        if isinstance(function, nn.Module) and tracer.state.paths.get(function):
            return tracer.call(original, function, *args, **kwargs)
        inner = getattr(function, "func", function)  # a functools.partial
        owner, name = getattr(inner, "__self__", inner), getattr(inner, "__name__", "")
        if isinstance(owner, nn.Module) and tracer.state.paths.get(owner) and name in CALLS:
            return function(*args)  # the call of the module checkpoints again when it runs
        raise Refused("it checkpoints a function of its own (torch.utils.checkpoint)")

    return checkpoint


def _autocast_state(device: str) -> Any:
    enabled = torch.is_autocast_enabled(device)
    return enabled and (torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled())


def _enter(tracer: Any, original: Any) -> Any:
    def enter(self: Any) -> Any:
        before = _autocast_state(self.device)
        result = original(self)
        if not tracer.busy and _autocast_state(self.device) != before:
            values = (self.device, self.fast_dtype, self._enabled, self._cache_enabled)
            tracer.casts[id(self)] = tracer.create_node("call_function", autocast_mode._enter_autocast, values, {})
        return result

    return enter


def _exit(tracer: Any, original: Any) -> Any:
    def leave(self: Any, *trouble: Any) -> Any:
        entered = None if tracer.busy else tracer.casts.pop(id(self), None)
        if entered is not None:
            tracer.create_node("call_function", autocast_mode._exit_autocast, (entered,), {})
        return original(self, *trouble)

    return leave


def _gradients(tracer: Any, original: Any) -> Any:
    def enter(self: Any) -> Any:
        if not tracer.busy:
            tracer.asked.add("grad")
            if not tracer.ambient_grad:
                raise Refused("it turns gradients on inside a forward that runs without")
        return original(self)

    return enter


def _inference(tracer: Any, original: Any) -> Any:
    """torch.inference_mode as torch.no_grad: tensors made in it would be of no use to the trace."""

    def enter(self: Any) -> Any:
        if tracer.busy:
            return original(self)
        self.before = torch._C.is_grad_enabled()
        torch._C._set_grad_enabled(self.before and not self.mode)
        return None

    return enter


def _uninference(tracer: Any, original: Any) -> Any:
    def leave(self: Any, *trouble: Any) -> Any:
        return original(self, *trouble) if tracer.busy else torch._C._set_grad_enabled(self.before)

    return leave


def _members(tracer: Any, original: Any) -> Any:
    """parameters() and buffers() of modules under the trace, as values of the graph."""

    def members(self: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, tensor in original(self, *args, **kwargs):
            yield name, tensor if tracer.busy or self not in tracer.state.paths else tracer.held(tensor)

    return members


# -- names that the user's modules look up in builtins ------------------------------------------------------------------


@contextmanager
def injected(root: nn.Module, patches: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """In the user's modules: isinstance() and callable() that take a proxy for what it stands for, the patches under the names that
    they were imported by, and no caches that proxies could get into."""
    packages = frozenset(type(m).__module__.partition(".")[0] for m in root.modules())
    spaces, cached = _spaces(packages, len(sys.modules)), _caches(len(sys.modules))
    known = {id(original): new for original, new in _originals(patches)}
    names = _imported(packages, len(sys.modules), frozenset(known))
    swaps = [(space, name, new) for space, name, new in cached if name in space]
    swaps += [(space, name, known[id(space[name])]) for space, name in names if id(space.get(name)) in known]
    before = [(space, name, space[name]) for space, name, _ in swaps]
    asking = [(s, n) for s in spaces for n in ASKED if n not in s]  # a trace around this one has put it there
    for space, name in asking:
        space[name] = ASKED[name]
    for space, name, new in swaps:
        space[name] = new
    try:
        yield
    finally:
        for space, name in asking:
            space.pop(name, None)
        for space, name, old in before:
            space[name] = old


def _uncached(function: Any) -> Any:
    """A function with a cache that keeps no proxies."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Value) for x in tree_leaves((args, kwargs))):
            return function.__wrapped__(*args, **kwargs)
        before = function.cache_info().misses
        result = function(*args, **kwargs)
        if function.cache_info().misses > before and any(isinstance(x, Value) for x in tree_leaves(result)):
            function.cache_clear()
        return result

    return call


def _originals(patches: list[tuple[Any, str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Functions of modules that the patches stand for; classes and their methods are found on the class itself."""
    for original, new in ((ORIGINALS.get((id(owner), name)), new) for owner, name, new in patches):
        if original is not None:
            yield original, new


@lru_cache(maxsize=64)
def _imported(packages: frozenset[str], loaded: int, known: frozenset[int]) -> list[tuple[dict[str, Any], str]]:
    return [(s, n) for s in _spaces(packages, loaded) for n, v in list(s.items()) if id(v) in known]


TORCH = "torch.nn.functional", "torch.nn.modules.transformer", "torch.nn.modules.activation"
SAFE = sys.stdlib_module_names | {"torch", "sympy", "numpy"}  # these meet no proxies, or know them


@lru_cache(maxsize=64)
def _spaces(packages: frozenset[str], loaded: int) -> list[dict[str, Any]]:
    """The namespaces of the user's packages."""
    ours = [n for n in list(sys.modules) if n.partition(".")[0] in packages and n != "torch"]
    return [vars(sys.modules[n]) for n in ours if n in TORCH or not n.startswith(("torch.", "gatec.capture"))]


@lru_cache(maxsize=4)
def _caches(loaded: int) -> list[tuple[dict[str, Any], str, Any]]:
    """Functions with a cache, in whatever library a forward may call, and what stands for them."""
    libraries = [n for n in list(sys.modules) if n.partition(".")[0] not in SAFE and not n.startswith("gatec.")]
    spaces = [vars(sys.modules[n]) for n in libraries if isinstance(sys.modules[n], types.ModuleType)]
    found = [(s, n, v) for s in spaces for n, v in list(s.items()) if isinstance(v, _lru_cache_wrapper)]
    return [(space, name, _uncached(function)) for space, name, function in found]


def _isinstance(value: Any, kind: Any) -> bool:
    if not isinstance(value, Value):
        return isinstance(value, kind)
    if isinstance(kind, type) and issubclass(kind, FakeTensor):
        return False
    if isinstance(kind, type) and issubclass(kind, fx.Proxy):
        return not value.tracer.settles(value)  # what is only known when the graph runs has another way then
    return isinstance(object.__getattribute__(value, "example"), kind)


def _callable(value: Any) -> bool:
    return callable(object.__getattribute__(value, "example") if isinstance(value, Value) else value)


ASKED: dict[str, Callable[..., bool]] = {"isinstance": _isinstance, "callable": _callable}
