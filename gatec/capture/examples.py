"""What operations give: computed on tensors without data, from recorded calls, or at last on zeros."""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from gatec.capture.guards import SELF, writes
from gatec.capture.record import Call, untouched
from gatec.capture.spies import looked_into, shape, without_data
from gatec.capture.state import restore
from gatec.capture.structure import PLAIN
from gatec.capture.values import Value
from gatec.errors import Refused

PLACES = (torch.int64, torch.int32, torch.int16, torch.int8)
ROOM = 2**29  # bytes of zeros that an operation may be tried on
DEPENDS = (DataDependentOutputException, DynamicOutputShapeException)


@contextmanager
def pretending(mode: FakeTensorMode) -> Iterator[None]:
    """Compute on tensors without data; autocast may not keep their casts, it would hand them to real calls."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with mode, torch.no_grad(), without_data():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class Unhooked(nn.Module):
    """A module without what fully_shard does around its calls: gather parameters, which a trace replaces anyway."""

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.held.forward(*args, **kwargs)


def whole(module: nn.Module, args: Any, kwargs: Any, fake: Any, spare: dict[str, Tensor] | None = None) -> Any:
    """An example of what a module gives, its parameters whole where they are sharded; `spare` stands for some tensors."""
    spare = (spare or {}) | {n: fake(p) for n, p in module.named_parameters() if isinstance(p, DTensor)}
    if isinstance(module, FSDPModule):
        module, spare = Unhooked(module), {f"held.{n}": t for n, t in spare.items()}
    return functional_call(module, spare, args, kwargs) if spare else module(*args, **kwargs)


class Examples:
    """The examples of one trace, all in one mode."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def of(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[Any, bool]:
        """The example of a node's value, and whether the node only asked an object something."""
        args, kwargs = tree_map(self._example, args), tree_map(self._example, kwargs)
        if kind == "get_attr":
            return self.fake(self.attribute(target)), False
        if kind == "call_module":
            return self._of_module(target, args, kwargs), False
        if kind == "call_method" and not isinstance(args[0], (Tensor, tuple, list, dict, *PLAIN)):
            before = _print(args[0])
            return self._run(getattr(args[0], target), args[1:], kwargs), _print(args[0]) == before
        return self._run(
            operator.methodcaller(target, *args[1:], **kwargs), args[:1], {}
        ) if kind == "call_method" else self._run(target, args, kwargs), False

    def _example(self, value: Any) -> Any:
        if value is SELF:
            return self.tracer.root
        if isinstance(value, Value):
            return value.example
        if looked_into(value) and any(isinstance(v, Value) for v in tree_leaves(vars(value))):
            spare = copy.copy(value)
            vars(spare).update(tree_map(self._example, vars(value)))
            return spare
        return value

    def _of_module(self, path: str, args: Any, kwargs: Any) -> Any:
        module = self.tracer.root.get_submodule(path)
        module = getattr(module, "_orig_mod", module)  # what torch.compile compiled, itself
        plain = all(isinstance(x, (Tensor, *PLAIN)) for x in tree_leaves((args, kwargs)))
        known = self.tracer.known(path, Call(args, kwargs)) if self.tracer.known and plain else None
        if known is not None and known.changed:
            raise Refused(f"{path} changes a list or a dict that it is given")
        if known is not None:
            return self.fake(known.output)
        try:
            with self.quiet(), _steady(self.tracer.contents):
                spare = {n: self._fake(b) for n, b in module.named_buffers()}  # a forward may write to them
                return whole(module, args, kwargs, self._fake, spare)
        except (*DEPENDS, Refused, RuntimeError, NotImplementedError) as e:
            return self._on_zeros(module, args, kwargs, e)

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function is operator.getitem and isinstance(args[0], Tensor):
            args = (args[0], tree_map(_any_place, args[1]))
        try:
            with self.quiet():
                return self._faked(function(*args, **kwargs))
        except DEPENDS as e:
            raise Refused(f"a size or a value in it depends on data ({e.func})") from None
        except (RuntimeError, NotImplementedError) as e:
            return self._on_zeros(function, args, kwargs, e)

    def _faked(self, value: Any) -> Any:
        """A result without data: some functions, torch.from_numpy among them, make real tensors even here."""
        return self._fake(value) if isinstance(value, Tensor) and not isinstance(value, FakeTensor) else value

    def _on_zeros(self, function: Any, args: Any, kwargs: Any, trouble: Exception) -> Any:
        """The shapes that come out for zeros, where an operation takes what its shape function refuses."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, FakeTensor)]
        if not tensors or sum(t.numel() * t.element_size() for t in tensors) > ROOM:
            raise trouble
        was, self.tracer.busy = self.tracer.busy, True
        try:
            real, named = tree_map(_zeros, args), tree_map(_zeros, kwargs)
            with torch.no_grad(), untouched(function if isinstance(function, nn.Module) else nn.Module()):
                return self.fake(function(*real, **named))
        except Exception:
            raise trouble from None
        finally:
            self.tracer.busy = was

    # -- tensors without data -------------------------------------------------------------------------------------

    def fake(self, value: Any) -> Any:
        """The same structure with tensors that have no data."""
        was, self.tracer.busy = self.tracer.busy, True
        try:
            return tree_map(self._fake, value)
        finally:
            self.tracer.busy = was

    def _fake(self, t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if isinstance(t, FakeTensor):  # an example from another trace
            if t.fake_mode is self.mode:
                return t
            with self.mode:
                return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        if isinstance(t, DTensor):  # shards are traced as the whole that they are part of
            with self.mode:
                whole = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            return whole.requires_grad_(t.requires_grad)
        return self.mode.from_tensor(t if t.is_leaf else t.detach().requires_grad_(t.requires_grad))

    def view(self, tensor: Tensor) -> Tensor:
        with self.quiet():
            return tensor.detach()

    def spare(self, thing: Any) -> Any:
        """A copy of an object that the forward may write to, with tensors that have no data."""
        was, self.tracer.busy = self.tracer.busy, True
        try:
            with mock.patch.object(Tensor, "__deepcopy__", lambda t, memo: self._fake(t)):
                return copy.deepcopy(thing)
        except Exception as e:
            raise Refused(f"an argument of type {type(thing).__name__} cannot be copied ({type(e).__name__})") from None
        finally:
            self.tracer.busy = was

    def attribute(self, path: str) -> Any:
        """The parameter, buffer or attribute itself, not a proxy of it."""
        was, self.tracer.busy = self.tracer.busy, True
        try:
            return operator.attrgetter(path)(self.tracer.root)
        finally:
            self.tracer.busy = was

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Work on examples, with the traps for the user's forward out of the way."""
        was, self.tracer.busy = self.tracer.busy, True
        log = logging.getLogger("torch._subclasses.fake_tensor")
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it would report becomes a refusal in words
        try:
            with pretending(self.mode):
                yield
        finally:
            self.tracer.busy = was
            log.setLevel(level)


@contextmanager
def _steady(contents: list[Any]) -> Iterator[None]:
    """Hooks of a child may append to lists: they will when the graph runs, not now."""
    before = {
        n: (v, v.copy(), shape(v))
        for i, held in enumerate(contents)
        for n, (v, _, _) in ((f"{i}.{n}", h) for n, h in held.items())
    }
    yield
    restore(before)


def _any_place(index: Any) -> Any:
    """A single number in a tensor selects one place, whichever it is: the shapes are those of the first."""
    single = isinstance(index, Tensor) and index.dim() == 0 and index.dtype in PLACES
    return 0 if single else index


def _zeros(value: Any) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    return torch.zeros(value.shape, dtype=value.dtype, device=value.device)


def _print(thing: Any, seen: set[int] | None = None) -> Any:
    """A fingerprint of an object's state: which tensors it holds and how often they were written, and all the rest."""
    seen = set() if seen is None else seen
    if isinstance(thing, Tensor):
        return id(thing), thing._version
    if isinstance(thing, PLAIN) or id(thing) in seen:
        return repr(thing) if isinstance(thing, PLAIN) else id(thing)
    seen.add(id(thing))
    if isinstance(thing, dict):
        return tuple((repr(k), _print(v, seen)) for k, v in thing.items())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return tuple(_print(v, seen) for v in thing)
    return type(thing), _print(vars(thing), seen) if hasattr(thing, "__dict__") else id(thing)


# -- values that sizes decide -------------------------------------------------------------------------------------------


class NotSettled(Exception):
    """The value depends on what stands in an argument or in a parameter."""


LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"}


def settled(node: fx.Node, found: dict[fx.Node, Any] | None = None) -> Any:
    """The value of a node that was made in the forward from sizes alone, computed for the sizes of the example."""
    found = {} if found is None else found
    if node not in found:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        chance = any(word in name for word in ("rand", "normal", "bernoulli", "multinomial", "dropout", "empty"))
        if node.op not in ("call_function", "call_method") or value.numel() > 2**22 or writes(node) or chance:
            raise NotSettled
        first, *rest = node.args or (None,)
        if name in LIKE and isinstance(first, fx.Node) and first.op == "placeholder":
            given: Any = (_zeros(first.meta["val"]), *fx.node.map_arg(tuple(rest), lambda n: settled(n, found)))
        else:
            given = fx.node.map_arg(node.args, lambda n: settled(n, found))
        named = fx.node.map_arg(node.kwargs, lambda n: settled(n, found))
        run: Any = getattr(given[0], name) if node.op == "call_method" else node.target
        with torch.no_grad():
            found[node] = run(*(given[1:] if node.op == "call_method" else given), **named)
    return found[node]
