"""Pointwise: a function of operands that broadcast, and its gradients, one tile per program.

Every operand is read once through its strides, so packed halves, rows, columns, gates of one number
per channel and transposed views need no copy. Backward recomputes values; nothing is saved.
"""

from collections.abc import Sequence

import torch
from torch import fx

from gatec.kernel import Kernel
from gatec.kernels.functions import Wide, needed
from gatec.kernels.spelling import spell, wide_of
from gatec.kernels.tile import CHECKS, LAUNCH, MERGE, REDUCE, TILE

HEAD = '''"""{name}: generated from {origin} by gatec/kernels/{maker}.py; do not edit."""

import functools
import math

import torch
import triton
import triton.language as tl

DTYPES = {dtypes}
OUT = {out}
WIDE = torch.{wide}
'''

FORWARD = """

def forward({operands}):
    expect(({operands},), DTYPES)
    shape = broadcast({shapes})
    out = room(({operands},), shape, OUT)
    if out.numel():
        launch({name}_forward, [out], [{read}])
    return out
"""

BACKWARD = '''

def backward(grad, {operands}, needs={needs}):
    """The gradient of each operand that needs one, in the operand's own shape."""
    expect((grad, {operands}), (OUT, *DTYPES))
{rooms}
    grads = [{grads}]
    if grad.numel() and any(g is not None for g in grads):
        launch({name}_backward, grads, [{read}])
{settle}
    return {results}
'''

NO_BACKWARD = '''

def backward(grad, {operands}, needs=None):
    """Nothing here can be differentiated."""
    return {results}
'''


def render(name: str, origin: str, forward: fx.Graph, backward: fx.Graph) -> Kernel:
    """Both graphs as gatec.derive makes them: dtypes are in their operands and outputs."""
    operands = forward.find_nodes(op="placeholder")
    wide = wide_of(forward)
    head = HEAD.format(
        name=name,
        origin=origin,
        maker="pointwise",
        dtypes=tuple(x.meta["val"].dtype for x in operands),
        out=forward.output_node().meta["val"][0].dtype,
        wide=wide,
    )
    names = [x.name for x in operands]
    grads = gradient_names(names, backward)
    written = [jit(f"{name}_forward", forward, ["out"], wide)]
    launchers = [CHECKS, MERGE, LAUNCH, forward_launcher(name, names, forward)]
    if any(grads):
        written.append(jit(f"{name}_backward", backward, [g for g in grads if g], wide))
        launchers[3:3] = [REDUCE]
        launchers.append(backward_launcher(name, names, grads, backward))
    else:
        results = str((None,) * len(names))
        launchers.append(NO_BACKWARD.format(operands=", ".join(names), results=results))
    functions = needed((line for text in written for line in text.splitlines()), wide)
    parts = [head, TILE, *functions, *written, *launchers]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


def gradient_names(names: Sequence[str], backward: fx.Graph) -> list[str | None]:
    found = backward.output_node().meta["val"]
    return [None if g is None else f"{n}_grad" for n, g in zip(names, found, strict=True)]


def used(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.find_nodes(op="placeholder") if node.users]


def jit(name: str, graph: fx.Graph, outs: Sequence[str], wide: Wide) -> str:
    """The kernel itself: read what is used, compute in the wide type, write what is wanted."""
    lines, results = spell(graph)
    wanted = [r for r in results if r is not None]
    operands = [node.name for node in used(graph)]
    pointers = [*outs, *operands]
    body = [
        "row = (tl.program_id(0).to(tl.int64) // across) * ROWS + tl.arange(0, ROWS)[:, None]",
        "col = (tl.program_id(0).to(tl.int64) % across) * COLS + tl.arange(0, COLS)[None, :]",
        *(load(node, wide) for node in used(graph)),
        *lines,
    ]
    for out, result in zip(outs, wanted, strict=True):
        body += store(out, result, wide, optional=out != "out")
    strides = ", ".join(f"{p}_at" for p in pointers)
    parameters = [", ".join(pointers), strides, "rows, across, shape"]
    signature = "".join(f"    {p},\n" for p in parameters)
    return (
        '@triton.jit(do_not_specialize=["rows", "across"])\n'
        f"def {name}(\n{signature}    ROWS: tl.constexpr,\n    COLS: tl.constexpr,\n):\n"
        + "\n".join(f"    {line}" for line in body)
    )


def load(node: fx.Node, wide: Wide) -> str:
    x = node.name
    text = f"{x} = read({x}, row, col, rows, shape, {x}_at)"
    dtype: torch.dtype = node.meta["val"].dtype
    return f"{text}.to(tl.{wide})" if dtype.is_floating_point else text


def store(out: str, result: str, wide: Wide, *, optional: bool) -> list[str]:
    value = result if result.isidentifier() else f"tl.full((1, 1), {result}, tl.{wide})"
    line = f"write({out}, {value}, row, col, rows, shape, {out}_at)"
    return [f"if {out} is not None:", f"    {line}"] if optional else [line]


def forward_launcher(name: str, names: Sequence[str], graph: fx.Graph) -> str:
    return FORWARD.format(
        name=name,
        operands=", ".join(names),
        shapes=", ".join(f"{x}.shape" for x in names),
        read=", ".join(node.name for node in used(graph)),
    )


def backward_launcher(name: str, names: Sequence[str], grads: Sequence[str | None], graph: fx.Graph) -> str:
    pairs = [(i, x, g) for i, (x, g) in enumerate(zip(names, grads, strict=True)) if g]
    made = ", ".join(g for _, _, g in pairs)
    return BACKWARD.format(
        name=name,
        operands=", ".join(names),
        needs=tuple(g is not None for g in grads),
        rooms="\n".join(f"    {g} = room_for_gradient({x}, grad.shape) if needs[{i}] else None" for i, x, g in pairs),
        grads=made,
        read=", ".join(node.name for node in used(graph)),
        settle="\n".join(f"    {g} = reduced({g}, {x})" for _, x, g in pairs),
        results="(" + ", ".join(g or "None" for g in grads) + ",)",
    )
