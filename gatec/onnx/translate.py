"""One traced program -> one ONNX model in standard operators, cleaned up by linear passes only."""

import builtins
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common

from gatec.errors import GatecError
from gatec.onnx.axes import Axis, Tensors
from gatec.onnx.cells import whole
from gatec.onnx.experts import DOMAIN, lowered
from gatec.onnx.flat import Flat
from gatec.onnx.mixtures import merge
from gatec.onnx.operators import GROUPED_OPERATOR, TRANSLATIONS, decomposed, operators_of, present
from gatec.onnx.remedies import chain

# onnxscript's rewriter is left out: its matcher is quadratic in the depth of the model, and its
# rotary embedding at opset 23 does not run in onnxruntime.
PASSES = (
    common.IdentityEliminationPass(),
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.LiftConstantsToInitializersPass(),
    common.DeduplicateInitializersPass(),
    common.RemoveUnusedOpsetsPass(),
)


MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+)\.(\w+)', overload='(\w+)'")
# Where the file says how many of its products run expert by expert.
GROUPED = "gatec.grouped"
# And what its mixtures became.
MIXTURES = "gatec.mixtures"


@dataclass(frozen=True)
class Target:
    """In which operators a file is written: of an opset, or with `merges` onnxruntime's own for mixtures too."""

    opset: int
    merges: bool = False


def translated(flat: Flat, tensors: Tensors, axes: list[Axis], target: Target) -> ir.Model:
    with quiet():
        program = decomposed(traced(flat, tensors, axes))
        mixtures = merge(program) if target.merges else []
        program = lowered(program) if mixtures else program
    names = list(flat.named(*tensors.values()))
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                input_names=list(tensors),
                output_names=[name if name not in tensors else f"{name}_out" for name in names],
                opset_version=target.opset,
                custom_translation_table=present(TRANSLATIONS),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        missing = untranslated(error)
        raise (missing or error) from (error if missing else error.__cause__)
    assert made is not None
    model: ir.Model = made.model
    model.metadata_props[GROUPED] = str(operators_of(program).count(GROUPED_OPERATOR))
    model.metadata_props[MIXTURES] = "\n".join(mixtures)
    tidy(model)
    rename_axes(model, axes)
    check(model, target)
    return model


def traced(flat: Flat, tensors: Tensors, axes: list[Axis]) -> torch.export.ExportedProgram:
    # DYNAMIC refuses a size that the model fixes; AUTO would keep the label and be wrong there.
    moving = {member for axis in axes for member in axis.members}
    shapes = tuple(
        {d: torch.export.Dim.DYNAMIC for d in range(t.dim()) if (name, d) in moving} or None
        for name, t in tensors.items()
    )
    with lengths(), whole():
        return torch.export.export(flat, tuple(tensors.values()), dynamic_shapes=(shapes,))


@contextlib.contextmanager
def lengths() -> Iterator[None]:
    """`len(tensor)` as a size that may differ: Python itself would make a number of it."""
    python = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else python(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = python


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What exporters say about themselves is no concern of the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def untranslated(error: BaseException) -> GatecError | None:
    for cause in chain(error):
        if found := MISSING.search(str(cause)):
            return GatecError(
                "an ONNX translation of every operator",
                found=f"none for {found[1]}::{found[2]}.{found[3]}",
                hint="gatec.onnx.register_decomposition or gatec.onnx.register_translation",
            )
    return None


def tidy(model: ir.Model) -> None:
    common.InlinePass()(model)
    with quiet():
        onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=False)
    for clean in PASSES:
        clean(model)
    model.functions.clear()


def rename_axes(model: ir.Model, axes: list[Axis]) -> None:
    """Sizes are called batch and sequence in the file, not s77."""
    shapes = {value.name: value.shape or () for value in model.graph.inputs}
    names = {str(shapes[name][dim]): axis.name for axis in axes for name, dim in axis.members}
    for value in every_value(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(d, names) for d in value.shape])


def every_value(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return ir.SymbolicDim(re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(dim.value)))


def check(model: ir.Model, target: Target) -> None:
    foreign = {n.domain for n in model.graph.all_nodes()} - {"", "ai.onnx", *([DOMAIN] if target.merges else [])}
    stamped = model.opset_imports.get("")
    if foreign or stamped != target.opset:
        raise GatecError(
            f"a file of standard operators at opset {target.opset}",
            found=f"opset {stamped}" + "".join(f", operators of {d}" for d in sorted(foreign)),
            hint="opset=20",
        )
