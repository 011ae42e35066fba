"""Rowwise: pointwise work and reductions over the last dimension, and its gradients, whole rows per program.

Norms, softmax and statistics of a row stand beside the gate that uses them. Backward recomputes values; nothing is saved.
The gradient of an operand that all rows share is summed inside a program over its rows, and over programs by the launcher.
"""

from collections.abc import Sequence

import torch
from torch import fx

from gatec.errors import GatecError
from gatec.kernel import Kernel
from gatec.kernels.functions import Wide, needed
from gatec.kernels.pointwise import HEAD, NO_BACKWARD, gradient_names, used
from gatec.kernels.spelling import spell, wide_of
from gatec.kernels.tile import CHECKS, MERGE, REDUCE, TILE
from gatec.rowform import LONGEST

SHARED = "{}_sum"

FORWARD = """

def forward({operands}):
    expect(({operands},), DTYPES)
    shape = rows_of({shapes})
    out = room(({operands},), shape, OUT)
    if out.numel():
        launch({name}_forward, shape, 1, [out], [{read}])
    return out
"""

BACKWARD = '''

def backward(grad, {operands}, needs={needs}):
    """The gradient of each operand that needs one, in the operand's own shape."""
    expect((grad, {operands}), (OUT, *DTYPES))
    shape = rows_of({shapes})
    steps = {steps}
{rooms}
    grads = [{grads}]
    if grad.numel() and any(g is not None for g in grads):
        launch({name}_backward, shape, steps, grads, [{read}])
{settle}
    return {results}
'''

LAUNCH = '''
def warps(elements):
    """Eight elements for each thread, in 128 to 1024 threads."""
    width = 64 if torch.version.hip else 32
    return min(max(128, elements // 8), 1024) // width


def rows_of(*shapes):
    shape = broadcast(*shapes)
    if shape[-1] != COLUMNS:
        raise TypeError(f"this kernel was generated for rows of {COLUMNS}, not of {shape[-1]}")
    return shape


def tile():
    COLS = triton.next_power_of_2(COLUMNS)
    return max(1, 1024 // COLS), COLS


def steps_for(shape):
    """Tiles that one program takes in turn, where it sums over them."""
    return triton.cdiv(triton.cdiv(math.prod(shape[:-1]), tile()[0]), 256)


def launch(kernel, shape, steps, outs, ins):
    known = ((x.shape, x.stride()) if x is not None and x.dim() else None for x in (*outs, *ins))
    rows, sizes, strides = merged(shape, 1, *known)
    ROWS, COLS = tile()
    grid = (triton.cdiv(rows, ROWS * steps),)
    with torch.cuda.device_of(ins[0]):
        kernel[grid](
            *outs, *ins, *strides, rows, steps, sizes,
            ROWS=ROWS, COLS=COLS, num_warps=warps(ROWS * COLS), enable_fp_fusion=True,
        )
'''

SUMS = '''
def room_for_sums(x, shape, steps):
    """One row of sums for each program, over what it sees of an operand that all rows share."""
    width = x.shape[-1] if x.dim() else 1
    if x.numel() != width:
        raise TypeError("this kernel was generated for an operand that all rows share")
    rows = math.prod(shape[:-1])
    return torch.empty((triton.cdiv(rows, tile()[0] * steps), width), dtype=WIDE, device=x.device)


def settled(sums, x):
    return None if sums is None else sums.sum(0).to(x.dtype).view(x.shape)
'''


def render(name: str, origin: str, forward: fx.Graph, backward: fx.Graph) -> Kernel:
    """Both graphs in row form, as gatec.derive makes them."""
    operands = forward.find_nodes(op="placeholder")
    values = [x.meta["val"] for x in operands]
    shape, wide = torch.broadcast_shapes(*(v.shape for v in values)), wide_of(forward)
    if shape[-1] > LONGEST:
        raise GatecError(f"a row of at most {LONGEST} elements", found=str(shape[-1]))
    head = HEAD.format(
        name=name,
        origin=origin,
        maker="rowwise",
        dtypes=tuple(v.dtype for v in values),
        out=forward.output_node().meta["val"][0].dtype,
        wide=wide,
    )
    head += f"COLUMNS = tl.constexpr({shape[-1]})\n"
    names = [x.name for x in operands]
    grads = gradient_names(names, backward)
    shared = [g is not None and _shared(v, shape) for g, v in zip(grads, values, strict=True)]
    written = [jit(f"{name}_forward", forward, ["out"], [False], wide)]
    launchers = [CHECKS, MERGE, LAUNCH.replace("COLUMNS", "COLUMNS.value"), forward_launcher(name, names, forward)]
    if any(grads):
        kept = [(g, s) for g, s in zip(grads, shared, strict=True) if g]
        written.append(jit(f"{name}_backward", backward, [g for g, _ in kept], [s for _, s in kept], wide))
        launchers[3:3] = [REDUCE, *([SUMS] if any(shared) else [])]
        launchers.append(backward_launcher(name, names, grads, shared, backward))
    else:
        launchers.append(NO_BACKWARD.format(operands=", ".join(names), results=str((None,) * len(names))))
    functions = needed((line for text in written for line in text.splitlines()), wide)
    parts = [head, TILE, *functions, *written, *launchers]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


def _shared(value: torch.Tensor, shape: torch.Size) -> bool:
    """Whether every row reads the same of an operand: not when there is only one row to see it by."""
    leading = value.shape[:-1]
    return all(n == 1 for n in leading) and (value.dim() < len(shape) or any(n != 1 for n in shape[:-1]))


def jit(name: str, graph: fx.Graph, outs: Sequence[str], shared: Sequence[bool], wide: Wide) -> str:
    """The kernel itself: for each of its tiles read whole rows, compute in the wide type, write or add up what is wanted."""
    lines, results = spell(graph)
    wanted = [r for r in results if r is not None]
    operands = [node.name for node in used(graph)]
    pointers = [f"{p}_ptr" for p in (*outs, *operands)]
    sums = [(out, r, _width(graph, i)) for i, (out, r, s) in enumerate(zip(outs, wanted, shared, strict=True)) if s]
    inner = [
        "row = (tile_at + step) * ROWS + tl.arange(0, ROWS)[:, None]",
        *(load(node, wide) for node in used(graph)),
        *lines,
    ]
    for out, result, s in zip(outs, wanted, shared, strict=True):
        inner += add_up(out, result, wide) if s else store(out, result, wide, optional=out != "out")
    body = [
        "tile_at = tl.program_id(0).to(tl.int64) * steps",
        "col = tl.arange(0, COLS)[None, :]",
        "inside = col < COLUMNS",
        *(f"{SHARED.format(out)} = tl.zeros((1, {width}), tl.{wide})" for out, _, width in sums),
        "for step in range(0, steps):",
        *(f"    {line}" for line in inner),
    ]
    for out, _, width in sums:
        body += store_sums(out, width)
    parameters = [", ".join(pointers), ", ".join(f"{p}_at" for p in (*outs, *operands)), "rows, steps, shape"]
    signature = "".join(f"    {p},\n" for p in parameters)
    return (
        '@triton.jit(do_not_specialize=["rows", "steps"])\n'
        f"def {name}(\n{signature}    ROWS: tl.constexpr,\n    COLS: tl.constexpr,\n):\n"
        + "\n".join(f"    {line}" for line in body)
    )


def _width(graph: fx.Graph, index: int) -> str:
    """How wide the sum for one gradient is: a row, or one number."""
    results = [r for r in graph.output_node().args[0] if r is not None]  # type: ignore[union-attr]
    value = results[index].meta["val"]  # type: ignore[union-attr]
    return "COLS" if value.dim() and value.shape[-1] != 1 else "1"


def load(node: fx.Node, wide: Wide) -> str:
    x = node.name
    text = f"{x} = read({x}_ptr, row, col, rows, shape, {x}_at)"
    dtype: torch.dtype = node.meta["val"].dtype
    return f"{text}.to(tl.{wide})" if dtype.is_floating_point else text


def store(out: str, result: str, wide: Wide, *, optional: bool) -> list[str]:
    value = result if result.isidentifier() else f"tl.full((1, 1), {result}, tl.{wide})"
    line = f"write({out}_ptr, {value}, row, col, rows, shape, {out}_at)"
    return [f"if {out}_ptr is not None:", f"    {line}"] if optional else [line]


def add_up(out: str, result: str, wide: Wide) -> list[str]:
    """Rows behind the last one count for nothing."""
    value = result if result.isidentifier() else f"tl.full((1, 1), {result}, tl.{wide})"
    return [f"{SHARED.format(out)} += tl.sum(tl.where(row < rows, {value}, 0.0), 0)[None, :]"]


def store_sums(out: str, width: str) -> list[str]:
    """A row of sums, or one number, for this program."""
    if width == "COLS":
        at, mask = "* COLUMNS + col", "inside"
    else:
        at, mask = "+ tl.zeros((1, 1), tl.int64)", "tl.full((1, 1), True, tl.int1)"
    at = f"{out}_ptr + tl.program_id(0).to(tl.int64) {at}"
    value = f"{SHARED.format(out)}.to({out}_ptr.dtype.element_ty)"
    return [f"if {out}_ptr is not None:", f"    tl.store({at}, {value}, mask={mask})"]


def forward_launcher(name: str, names: Sequence[str], graph: fx.Graph) -> str:
    return FORWARD.format(
        name=name,
        operands=", ".join(names),
        shapes=", ".join(f"{x}.shape" for x in names),
        read=", ".join(node.name for node in used(graph)),
    )


def backward_launcher(
    name: str, names: Sequence[str], grads: Sequence[str | None], shared: Sequence[bool], graph: fx.Graph
) -> str:
    rows = [(i, x, g, s) for i, (x, g, s) in enumerate(zip(names, grads, shared, strict=True)) if g]
    per_row = {i: _width_of(graph, x) == "1" for i, x, _, _ in rows}
    made = {i: f"room_for_sums({x}, shape, steps)" if s
            else f"room_for_gradient({x}, {'(*shape[:-1], 1)' if per_row[i] else 'shape'})" for i, x, _, s in rows}  # fmt: skip
    return BACKWARD.format(
        name=name,
        operands=", ".join(names),
        shapes=", ".join(f"{x}.shape" for x in names),
        needs=tuple(g is not None for g in grads),
        steps="steps_for(shape)" if any(shared) else "1",
        rooms="\n".join(f"    {g} = {made[i]} if needs[{i}] else None" for i, _, g, _ in rows),
        grads=", ".join(g for _, _, g, _ in rows),
        read=", ".join(node.name for node in used(graph)),
        settle="\n".join(f"    {g} = {'settled' if s else 'reduced'}({g}, {x})" for _, x, g, s in rows),
        results="(" + ", ".join(g or "None" for g in grads) + ",)",
    )


def _width_of(graph: fx.Graph, operand: str) -> str:
    node = next(n for n in graph.find_nodes(op="placeholder") if n.name == operand)
    return "1" if node.meta["val"].shape[-1:] in ((), (1,)) else "COLS"
