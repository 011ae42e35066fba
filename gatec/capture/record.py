"""One forward of the whole model, watched: which module was called with what, and what came back."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import Tensor, nn

from gatec.capture.spies import OWN, looked_into, refill, tracing, writable


@dataclass(frozen=True)
class Call:
    """One call of one module; tensors are held by reference, never copied."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    changed: bool = False  # a list or a dict that it was given held other things afterwards


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, list[Call]]:
    """Every call of every submodule (by module path, "" is the model) during `model(*args, **kwargs)`.

    The model, its buffers, its plain attributes and the random state are the same afterwards.
    """
    calls: dict[str, list[Call]] = defaultdict(list)
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.no_grad())
        closed = tuple(f"{path}." if path else "" for path in compiled(model))
        for path, module in model.named_modules():
            if closed and f"{path}.".startswith(closed):
                continue
            given: list[Any] = []
            before = module.register_forward_pre_hook(_kept(given), with_kwargs=True)
            after = module.register_forward_hook(_watch(calls[path], given), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        model(*args, **kwargs)
    return {path: found for path, found in calls.items() if found}


def compiled(model: nn.Module) -> dict[str, str]:
    """Modules that somebody compiled, by path, with the reason why nothing can be seen of their calls."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        inside = any(f"{path}.".startswith(f"{outer}." if outer else "") for outer in found)
        if isinstance(module, torch.jit.ScriptModule) and not inside:
            found[path] = "it is compiled by TorchScript"
        elif isinstance(module, torch._dynamo.eval_frame.OptimizedModule) and not inside:
            found[path] = "it is compiled by torch.compile: give gatec the model first, and compile what comes back"
    return found


def _held(value: Any) -> Any:
    """What stands in the lists and dicts of some arguments."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_held, value))
    if type(value) is dict:
        return tuple((k, _held(v)) for k, v in value.items())
    return id(value) if isinstance(value, Tensor) else None


def _kept(given: list[Any]) -> Any:
    """Hold on to the arguments in lists and dicts of their own: a forward may write to those that it is given."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not tracing():
            given.append((_copied(args), _copied(kwargs)))

    return hook


def _copied(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {k: _copied(v) for k, v in value.items()}
    return _before(value) if looked_into(value) else value


def _before(thing: Any) -> Any:
    """An object as it is now, such as a KV cache that the call will extend; its tensors are held by reference."""
    try:
        with mock.patch.object(Tensor, "__deepcopy__", lambda t, memo: t):
            return copy.deepcopy(thing)
    except Exception:
        return thing


def _watch(calls: list[Call], given: list[Any]) -> Any:
    def hook(_: nn.Module, now: Any, named: Any, output: Any) -> None:
        if not tracing():
            args, kwargs = given.pop()
            changed = _held((args, kwargs)) != _held((now, named))
            loose = isinstance(output, (list, dict)) or looked_into(output)  # the module around it may write to it
            calls.append(Call(args, kwargs, copy.copy(output) if loose else output, changed))

    return hook


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode; every training flag comes back as it was."""
    training = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back every buffer, plain attribute and random state that the body writes (BatchNorm does, in train mode)."""
    modules = list(model.modules())
    attributes = [dict(vars(m)) for m in modules]
    inside = [contents(m) for m in modules]
    buffers = [{n: (b, None if b is None else b.clone()) for n, b in m._buffers.items()} for m in modules]
    devices = {b.device for b in model.parameters() if b.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, before, held, inner in zip(modules, attributes, buffers, inside, strict=True):
                    _restore(module, before, held)
                    for value, copy in inner:
                        refill(value, copy)


def contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The lists, dicts and sets that the module's author keeps on it, with copies: a forward may cache things there."""
    own = [v for n, v in vars(module).items() if n not in OWN]
    inner = [v for thing in own if looked_into(thing) for v in vars(thing).values()]
    return [(v, v.copy()) for v in own + inner if writable(v)]


def _restore(module: nn.Module, before: dict[str, Any], held: dict[str, Any]) -> None:
    now = vars(module)
    for name in [n for n in now if n not in before]:
        del now[name]
    now.update(before)
    for name, (buffer, values) in held.items():
        module._buffers[name] = buffer
        if buffer is not None and not buffer.is_meta:
            buffer.copy_(values)
