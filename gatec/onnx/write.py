"""export(): trace, translate, save, check, prove. Read this file first."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.inputs import example_inputs
from gatec.onnx import skipping
from gatec.onnx.axes import Axis, Tensors, axes_of, resized
from gatec.onnx.exported import Exported
from gatec.onnx.flat import Flat, Inputs, evaluating, flatten
from gatec.onnx.parity import distance, proven, runtime
from gatec.onnx.plain import plain
from gatec.onnx.remedies import Remedy, remedied
from gatec.onnx.sides import Sides
from gatec.onnx.translate import GROUPED, translated

OPSETS = range(18, 26)  # above, the exporter stamps files with an opset that is not theirs
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
) -> Exported:
    """Write the model as ONNX, run it, and return what was found; raises if they disagree.

    `inputs` may be left out where the model says what it eats; `static` names sizes (batch, sequence, height, ...) that
    are to stay as they are in `inputs`; with `skip`, what a decision on data leaves unused is not computed.
    """
    runtime()
    if opset not in OPSETS:
        raise GatecError(f"an opset from {OPSETS[0]} to {OPSETS[-1]}", found=str(opset), hint="opset=20")
    with evaluating(model):
        flat, tensors = flatten(model, guessed(model) if inputs is None else inputs)
        repeatable(flat, tensors)
        axes, notes = moving(flat, tensors, static)
        tensors = resized(tensors, {a: a.size for a in axes})
        made, axes, more = attempted(flat, tensors, axes, opset)
        with tempfile.TemporaryDirectory(dir=Path(path).resolve().parent) as folder:
            sides, unskipped = decided(made, Path(folder)) if skip else (None, [])
            file = saved(made, Path(folder) / Path(path).name)
            others = sides.more(tensors) if sides else []
            rows, hidden = proven(file, flat, tensors, axes, shapes_checked, tolerance, others)
            size = sum(part.stat().st_size for part in Path(folder).iterdir())
            # Only what was proven takes the name: an earlier file survives a failed export.
            for part in Path(folder).iterdir():
                part.replace(Path(path).parent / part.name)
    operators = dict(Counter(node.op_type for node in made.graph.all_nodes()))
    return Exported(
        Path(path),
        opset,
        size,
        operators,
        labels(made),
        rows,
        tuple(notes + more + hidden + sparse(made) + unskipped),
        sides.report() if sides else (),
    )


def decided(made: ir.Model, folder: Path) -> tuple[Sides | None, list[str]]:
    """What is not always needed becomes conditional, in place."""
    plain(made)
    dense = made.clone()
    parts, notes = skipping.skip(made)
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


def accepts(flat: Flat, tensors: Tensors, axis: Axis, step: int) -> bool:
    try:
        flat(*resized(tensors, {axis: axis.size + step}).values())
    except Exception:
        return False
    return True


def attempted(flat: Flat, tensors: Tensors, axes: list[Axis], opset: int) -> tuple[ir.Model, list[Axis], list[str]]:
    """Trace with as many sizes free as will go; notes say which were lost."""
    tried: list[Remedy] = []
    certain = [a for a in axes if a.kind != "length"]
    rungs = [axes, certain, [a for a in axes if a.kind == "batch"], []]
    failures: list[Exception] = []
    for rung in [r for i, r in enumerate(rungs) if r not in rungs[:i]]:
        made = remedied_until_it_traces(flat, tensors, rung, opset, tried)
        if isinstance(made, Exception):
            failures.append(made)
            continue
        lost = [f"{a.name} stays {a.size}: tracing ties it down" for a in certain if a not in rung]
        return made, rung, [*(r.note for r in tried), *lost]
    raise GatecError(
        "a model that torch.export traces and torch.onnx translates",
        found=str(failures[-1]).strip().splitlines()[0],
        where=type(flat.model).__name__,
        hint="torch.export.export on the model alone shows the whole story",
    ) from failures[-1]


def remedied_until_it_traces(
    flat: Flat, tensors: Tensors, axes: list[Axis], opset: int, tried: list[Remedy]
) -> ir.Model | Exception:
    while True:
        try:
            return translated(flat, tensors, axes, opset)
        except GatecError:
            raise
        except Exception as error:
            copied = remedied(error, flat.model, tried)
            if copied is None:
                return error
            flat = flat.on(copied)


def saved(model: ir.Model, file: Path) -> Path:
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    ir.save(model, file, external_data=f"{file.name}.data" if weights > INLINE else None)
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GatecError(
            "a file that onnx.checker accepts",
            found=str(error).strip().splitlines()[0],
            hint="another opset=; a bfloat16 model as model.float()",
        ) from error
    return file


def labels(model: ir.Model) -> dict[str, tuple[str, ...]]:
    return {str(v.name): tuple(str(d) for d in v.shape or ()) for v in model.graph.inputs}


def sparse(model: ir.Model) -> list[str]:
    products = model.metadata_props[GROUPED]
    if products == "0":
        return []
    return [f"routing runs sparse: each expert of {products} grouped products sees its tokens only"]
