"""convert, compact, why: read this file first."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from gatec.catalog import Step, steps
from gatec.errors import GatecError
from gatec.inputs import example_inputs
from gatec.program import Edit, Program
from gatec.report import Report, attach
from gatec.rewrite import put
from gatec.verify import distance, finite, forward

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *passes: Any, pass_: Any = None, inputs: Any = None, only: str | None = None,
            progress: Callable[[str], Any] | None = None, **options: Any) -> Model:  # fmt: skip
    """A copy of `model` with the gates of `passes` put in; `model` is not touched.

    passes   "moe", "glu,prune", "moe(experts=8,top_k=2)", a Gate, or a list of these; also pass_= and **{"pass": ...}
    inputs   what the model eats: a tensor, a tuple, or a dict of keyword arguments; guessed where the model says so
    only     a regular expression over site names (module paths)
    options  of the one pass: convert(model, "moe", experts=8, top_k=2)

    `gatec.report(result)` tells what was put where, what was left and why, and how far the output moved.
    Raises GatecError if nothing could be put anywhere.
    """
    return convert_(_copy(model), *passes, pass_=pass_, inputs=inputs, only=only, progress=progress, **options)


def convert_(model: Model, *passes: Any, pass_: Any = None, inputs: Any = None, only: str | None = None,
             progress: Callable[[str], Any] | None = None, **options: Any) -> Model:  # fmt: skip
    """`convert` in place. If anything fails the model is as it was, to the bit."""
    wanted = steps([*passes, *([pass_] if pass_ else []), *_keyword(options)], options)
    program = prepare(model, inputs)
    with all_or_nothing() as undo:
        for gate, own in wanted:
            put(gate, own, program, undo, only=re.compile(only).search if only else None, tick=progress)
        _something(program, wanted)
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(program.edits), moved, tuple(program.missed.items())), undo)
    return model


def why(model: nn.Module, *passes: Any, inputs: Any = None, **options: Any) -> list[Edit]:
    """What `convert` would do and why, place by place, near misses included; nothing is changed."""
    program = prepare(model, inputs)
    for gate, own in steps(passes, options):
        put(gate, own, program, [], dry=True)
    return program.edits


def prepare(model: nn.Module, inputs: Any) -> Program:
    """The recorded program of a model that is fit to be rewritten."""
    if not isinstance(model, nn.Module):
        raise GatecError("a torch.nn.Module", found=type(model).__name__, hint="gatec.zoo.load builds models from text")
    finite(model, type(model).__name__)
    args, kwargs = example_inputs(model, inputs)
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs.setdefault("use_cache", False)  # a cache would outlive the recorded forward
    return Program.of(model, args, kwargs)


@contextmanager
def all_or_nothing() -> Iterator[list[Callable[[], Any]]]:
    """A journal of undo steps; they run, newest first, if the body fails."""
    undo: list[Callable[[], Any]] = []
    try:
        yield undo
    except BaseException:
        while undo:
            undo.pop()()
        raise


def _keyword(options: dict[str, Any]) -> list[Any]:
    return [options.pop("pass")] if "pass" in options else []


def _copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as e:
        raise GatecError("a model that can be copied", found=f"{type(e).__name__}: {str(e)[:120]}",
                         hint="gatec.convert_(model, ...) works in place") from e  # fmt: skip


def _something(program: Program, wanted: list[Step]) -> None:
    if any(e.verdict == "put" for e in program.edits):
        return
    names = ", ".join(g.name for g, _ in wanted)
    reasons = [f"{e.site}: {e.why}" for e in program.edits] + [f"{p or '(model)'}: {w}" for p, w in program.missed.items()]
    found = "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "") if reasons else "no such place"
    raise GatecError(f"a place for {names} in {type(program.model).__name__}", found=found,
                     hint=f'gatec.why(model, "{names}") lists every place that was considered')  # fmt: skip
