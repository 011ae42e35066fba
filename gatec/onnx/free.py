"""The sizes that an export leaves free: those that eager lets differ and that tracing does not tie down."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from gatec.errors import GatecError, first_line
from gatec.onnx.axes import Axis, Tensors, axes_of, resized
from gatec.onnx.flat import Flat
from gatec.onnx.remedies import Remedy, chain, remedied
from gatec.onnx.translate import Target, quiet, traced, translated

CONSTANT = re.compile(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\] as dynamic but your code specialized")


def moving(flat: Flat, tensors: Tensors, static: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The sizes that eager itself lets differ; a line for each one that it does not."""
    axes, notes = [], []
    candidates = axes_of(tensors)
    known = [a.name for a in candidates]
    if unknown := [name for name in static if name not in known]:
        raise GatecError(f"static to name sizes among {', '.join(known)}", found=", ".join(unknown))
    for axis in candidates:
        if axis.name in static:
            notes.append(f"{axis.name} stays {axis.size}, as asked")
            continue
        step = next((s for s in axis.steps if accepts(flat, tensors, axis, s)), None)
        if step is not None:
            # Tracing takes a size of one for a constant.
            axes.append(replace(axis, size=max(2, axis.size), steps=(step,)))
        elif axis.kind != "length":
            refused = axis.size + axis.steps[-1]
            notes.append(f"{axis.name} stays {axis.size}: the model refuses {refused}")
    return axes, notes


def accepts(run: Callable[..., Any], tensors: Tensors, axis: Axis, step: int) -> bool:
    try:
        run(*resized(tensors, {axis: axis.size + step}).values())
    except Exception:
        return False
    return True


def attempted(flat: Flat, tensors: Tensors, axes: list[Axis], target: Target) -> tuple[ir.Model, list[Axis], list[str]]:
    """Trace with as many sizes free as will go; notes say which were lost."""
    remedies: list[Remedy] = []
    certain = [a for a in axes if a.kind != "length"]
    waiting = [axes, certain, [a for a in axes if a.kind == "batch"], []]
    failures: list[Exception] = []
    while waiting:
        rung = waiting.pop(0)
        made = remedied_until_it_traces(flat, tensors, rung, target, remedies)
        if isinstance(made, ir.Model):
            lost = [f"{a.name} stays {a.size}: tracing ties it down" for a in certain if a not in rung]
            return made, rung, [*(r.note for r in remedies), *lost]
        failures.append(made)
        free = [a for a in rung if a not in tied(made, tensors, rung)]
        waiting = [r for r in (free, *waiting) if len(r) < len(rung)]
    raise GatecError(
        "a model that torch.export traces and torch.onnx translates",
        found=first_line(failures[-1]),
        where=type(flat.model).__name__,
        hint="torch.export.export on the model alone shows the whole story",
    ) from failures[-1]


def tied(error: Exception, tensors: Tensors, axes: list[Axis]) -> list[Axis]:
    """The sizes that torch.export says it took for constants."""
    names = list(tensors)
    found = {(names[int(m[1])], int(m[2])) for e in chain(error) for m in CONSTANT.finditer(str(e))}
    return [a for a in axes if found & set(a.members)]


def unheld(flat: Flat, tensors: Tensors, axes: list[Axis]) -> list[Axis]:
    """The sizes at which the traced program stops where eager does not: a number computed from them became a constant."""
    try:
        with quiet():
            program = traced(flat, resized(tensors, {a: a.size for a in axes}), axes).module()
    except Exception:  # it was traced with a remedy
        return []
    return [a for a in axes if not accepts(program, tensors, a, a.steps[0])]


def remedied_until_it_traces(
    flat: Flat, tensors: Tensors, axes: list[Axis], target: Target, tried: list[Remedy]
) -> ir.Model | Exception:
    while True:
        try:
            return translated(flat, tensors, axes, target)
        except GatecError:
            raise
        except Exception as error:
            copied = remedied(error, flat.model, tried)
            if copied is None:
                return error
            flat = flat.on(copied)
