"""What the modules of a model are called with: in its own call, and in every other call that it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.variants import Inputs, batches, cached, lengths, step
from gatec.capture import Call, untouched

Calls = dict[str, dict[str, Call]]  # by the name of the other call, then by module path


def recorded(model: nn.Module, inputs: Inputs, paths: set[str]) -> Calls:
    """What each module at `paths` is called with, first, in the model's call and in the other calls that it accepts."""
    calls: Calls = {"base": {}}
    _watch(model, inputs, paths, calls["base"])
    for name, ways in (("batch", batches(inputs)), ("length", lengths(inputs)), ("cache", cached(model, inputs))):
        output = _accepted(model, ways, paths, calls, name)
    for name, ways in (("step", step(inputs, output)),):
        _accepted(model, ways, paths, calls, name)
    return calls


def _accepted(model: nn.Module, ways: Iterator[Inputs], paths: set[str], calls: Calls, name: str) -> Any:
    for inputs in ways:
        found: dict[str, Call] = {}
        try:
            output = _watch(model, inputs, paths, found)
        except Exception:  # whatever the model raises, it does not take this call
            continue
        calls[name] = found
        return output
    return None


def _watch(model: nn.Module, inputs: Inputs, paths: set[str], found: dict[str, Call]) -> Any:
    """Run the model; keep copies of each module's first arguments, since what comes after may write into them."""

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in found:
                found[path] = Call(*copied((args, kwargs)))

        return hook

    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.no_grad())
        for path in paths:
            handle = model.get_submodule(path).register_forward_pre_hook(before(path), with_kwargs=True)
            stack.callback(handle.remove)
        torch.manual_seed(0)
        args, kwargs = copied(inputs)
        return model(*args, **kwargs)
