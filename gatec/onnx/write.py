"""export(): trace, translate, save, check, prove. Read this file first."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from gatec.capture import evaluating
from gatec.errors import GatecError, first_line
from gatec.inputs import example_inputs
from gatec.onnx import skipping
from gatec.onnx.axes import Axis, Tensors, resized
from gatec.onnx.exported import Exported
from gatec.onnx.flat import Flat, Inputs, flatten
from gatec.onnx.free import attempted, moving, unheld
from gatec.onnx.parity import distance, proven, runtime
from gatec.onnx.plain import plain
from gatec.onnx.remedies import FORMS
from gatec.onnx.sides import Sides
from gatec.onnx.translate import GROUPED, MIXTURES, Target

OPSETS = range(18, 26)  # above, the exporter stamps files with an opset that is not theirs
EXPERTS = ("standard", "ort")
INLINE = 1_500_000_000  # bytes of weights in the file itself; a protobuf ends at 2 GB


def export(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs | None = None,
    *,
    opset: int = 20,
    shapes_checked: int = 2,
    tolerance: float | None = None,
    static: Sequence[str] = (),
    skip: bool = False,
    experts: str = "standard",
) -> Exported:
    """Write the model as ONNX, run it, and return what was found; raises if they disagree.

    `inputs` may be left out where the model says what it eats; `static` names sizes (batch, sequence, height, ...) that
    are to stay as they are in `inputs`; with `skip`, what a decision on data leaves unused is not computed; with
    experts="ort", mixtures of experts are onnxruntime's own operator where it computes them.
    """
    runtime()
    if opset not in OPSETS:
        raise GatecError(f"an opset from {OPSETS[0]} to {OPSETS[-1]}", found=str(opset), hint="opset=20")
    if experts not in EXPERTS:
        raise GatecError(f"experts as one of {', '.join(EXPERTS)}", found=repr(experts), hint='experts="standard"')
    with torch.no_grad(), evaluating(model):
        inputs = guessed(model) if inputs is None else inputs
        flat, tensors = flatten(model, inputs)
        repeatable(flat, tensors)
        axes, notes = moving(flat, tensors, static)
        wanted = Wanted(flat, tensors, Path(path), Target(opset, experts == "ort"), shapes_checked, tolerance, skip)
        done, free = held(wanted, flat, axes)
        for form in FORMS if len(free) < len(axes) else ():
            if (other := form.apply(model, inputs)) is None:
                continue
            with contextlib.suppress(GatecError):
                again, more = held(wanted, flat.on(other), axes)
                done, free = (again.noting(form.note), more) if len(more) > len(free) else (done, free)
    return replace(done, notes=tuple(notes) + done.notes)


@dataclass(frozen=True)
class Wanted:
    """What a file has to agree with, and where and how it is written."""

    flat: Flat
    tensors: Tensors
    path: Path
    target: Target
    shapes_checked: int
    tolerance: float | None
    skip: bool


def held(wanted: Wanted, source: Flat, axes: list[Axis]) -> tuple[Exported, list[Axis]]:
    """The file with as many of these sizes free as the traced `source` holds to, and which they are."""
    notes: list[str] = []
    while True:
        try:
            done, free = written(wanted, source, axes)
            return done.noting(*notes), free
        except GatecError:
            if not (lost := unheld(source, wanted.tensors, axes)):
                raise
            axes = [a for a in axes if a not in lost]
            notes += [f"{a.name} stays {a.size}: tracing makes a constant of what depends on it" for a in lost]


def written(wanted: Wanted, source: Flat, axes: list[Axis]) -> tuple[Exported, list[Axis]]:
    """The file of a traced `source`, proven against what was wanted."""
    path, tensors = wanted.path, resized(wanted.tensors, {a: a.size for a in axes})
    made, axes, notes = attempted(source, tensors, axes, wanted.target)
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as folder:
        sides, unskipped = decided(made, Path(folder)) if wanted.skip else (None, [])
        file = saved(made, Path(folder) / path.name)
        others = sides.more(tensors) if sides else []
        rows, hidden = proven(file, wanted.flat, tensors, axes, wanted.shapes_checked, wanted.tolerance, others)
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
        # Only what was proven takes the name: an earlier file survives a failed export.
        for part in Path(folder).iterdir():
            part.replace(path.parent / part.name)
    operators = dict(Counter(node.op_type for node in made.graph.all_nodes()))
    said = tuple(notes + hidden + sparse(made) + unskipped)
    done = Exported(
        path, wanted.target.opset, size, operators, labels(made), rows, said, sides.report() if sides else ()
    )
    return done, axes


def decided(made: ir.Model, folder: Path) -> tuple[Sides | None, list[str]]:
    """What is not always needed becomes conditional, in place."""
    plain(made)
    dense = made.clone()
    parts, notes = skipping.skip(made)
    common.NameFixPass()(made)
    return (Sides(dense, parts, folder) if parts else None), notes


def guessed(model: nn.Module) -> Inputs:
    """The tensors that the model says it eats; flags beside them are left to its own defaults."""
    args, kwargs = example_inputs(model)
    return tuple(args) if args else {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}


def repeatable(flat: Flat, tensors: Tensors) -> None:
    first, second = flat(*tensors.values()), flat(*tensors.values())
    if not first:
        raise GatecError("a model that returns tensors", where=type(flat.model).__name__)
    if any(distance(a, b)[0] > 0 for a, b in zip(first, second, strict=True)):
        raise GatecError(
            "a model that answers twice the same",
            found="two different outputs for one input, in eval mode",
            where=type(flat.model).__name__,
            hint="draw random numbers outside of the model and pass them in",
        )


def saved(model: ir.Model, file: Path) -> Path:
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    ir.save(model, file, external_data=f"{file.name}.data" if weights > INLINE else None)
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GatecError(
            "a file that onnx.checker accepts",
            found=first_line(error),
            hint="another opset=; a bfloat16 model as model.float()",
        ) from error
    return file


def labels(model: ir.Model) -> dict[str, tuple[str, ...]]:
    return {str(v.name): tuple(str(d) for d in v.shape or ()) for v in model.graph.inputs}


def sparse(model: ir.Model) -> list[str]:
    mixtures, products = model.metadata_props[MIXTURES].splitlines(), model.metadata_props[GROUPED]
    if products == "0":
        return mixtures
    return [*mixtures, f"routing runs sparse: each expert of {products} grouped products sees its tokens only"]
