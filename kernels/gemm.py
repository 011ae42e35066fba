"""GEMM: products of rows with weights, and a pointwise function of them and of other operands, in one kernel.

Sums of products stand in float32 accumulators. What backward needs of them, the projections, is kept in their own type, side by
side; a pointwise kernel makes their gradients in the same form, and the library's matrix products do the rest.
"""

from collections.abc import Sequence

from torch import fx

from gatec.kernel import Kernel
from gatec.kernels import products
from gatec.kernels.functions import Wide, needed
from gatec.kernels.pointwise import HEAD, gradient_names, load, store, used
from gatec.kernels.pointwise import jit as pointwise_jit
from gatec.kernels.products import Plan, Product, Tiles
from gatec.kernels.spelling import spell, wide_of
from gatec.kernels.tile import CHECKS, LAUNCH, MERGE, REDUCE, TILE

GROUP = 8  # tiles of rows that programs next to each other share, so that weights stay in the second-level cache
HALVES = """
@triton.jit
def halves(x):
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
"""

# Rows, columns and depth of a tile, warps, stages. Which of them a plan has is decided by `configs`.
TILES = (
    (128, 128, 64, 8, 3),
    (128, 64, 64, 4, 3),
    (64, 128, 64, 4, 3),
    (64, 64, 64, 4, 3),
    (16, 64, 64, 4, 4),
)
SHARED = 232448  # bytes of shared memory that a program of sm_90 may have


def configs(plan: Plan) -> dict[str, Tiles]:
    """The tiles that hold their accumulators in registers and their stages in shared memory, compiled without spills."""
    size = dict(zip(plan.operands, plan.dtypes, strict=True))[plan.inputs[0]].itemsize
    totals, most = len(plan.totals), max(sum(p.rows == x for p in plan.products) for x in plan.inputs)
    found = {}
    for rows, columns, depth, warps, stages in TILES:
        if size == 4:  # exact float32 products are made of scalar instructions: small tiles
            rows, columns, depth, stages = min(rows, 64), min(columns, 32), 16, 2
        held = rows * columns // (32 * warps)  # by each thread, of one accumulator
        shared = stages * (rows + most * columns) * depth * size
        if held <= 64 and totals * held <= 128 and shared <= SHARED and (rows > 16 or totals < 3):
            found[f"{rows}x{columns}x{depth}"] = (rows, columns, depth, warps, stages)
    return found


def render(name: str, origin: str, plan: Plan, forward: fx.Graph, backward: fx.Graph) -> Kernel:
    """Both graphs are the epilogue's: of the totals first, and of other operands."""
    wide = wide_of(forward)
    head = HEAD.format(name=name, origin=origin, maker="gemm", dtypes=plan.dtypes, wide=wide,
                       out=forward.output_node().meta["val"][0].dtype)  # fmt: skip
    names = [n.name for n in forward.find_nodes(op="placeholder")]
    grads = gradient_names(names, backward)
    written = [
        jit(f"{name}_forward", plan, forward, wide),
        pointwise_jit(f"{name}_epilogue", forward, ["out"], wide),
        pointwise_jit(f"{name}_backward", backward, [g for g in grads if g], wide),
    ]
    functions = needed((line for text in written for line in text.splitlines()), wide)
    launchers = products.launchers(name, plan, read_beside(plan, forward), forward, backward)
    parts = [head + products.table(configs(plan), plan), TILE, *functions, *written, CHECKS, MERGE, LAUNCH, REDUCE,
             products.LAUNCH, products.GRADIENTS, *launchers]  # fmt: skip
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


def jit(name: str, plan: Plan, graph: fx.Graph, wide: Wide) -> str:
    """The kernel: accumulate, then finish the left and the right half of a tile in turn, which needs fewer registers."""
    pointers = ["out", *(f"{t}_kept" for t in plan.totals), *read_beside(plan, graph)]
    matrices = [f"{m}_ptr" for m in (*plan.inputs, *plan.weights)]
    strides = [f"{p}_at" for p in pointers]
    body = [
        *place(),
        *(f"{t} = tl.zeros((ROWS, COLS), tl.float32)" for t in plan.totals),
        *(line for x in plan.inputs for line in loop(x, [p for p in plan.products if p.rows == x])),
        *(f"{t}_left, {t}_right = halves({t})" for t in plan.totals),
        "col = left + tl.arange(0, COLS // 2)[None, :]",
    ]
    for side, col in (("left", "col"), ("right", "col + COLS // 2")):
        parts = [f"{t}_{side}" for t in plan.totals]
        body.append(f"{name}_finish({', '.join([*pointers, *strides, *parts, 'row', col, 'rows', 'shape'])})")
    signature = [pointers, matrices, strides, [f"{m}_at" for m in matrices], ["rows", "shape"]]
    given = [pointers, strides, [*plan.totals, "row", "col", "rows", "shape"]]
    return "\n\n\n".join([
        HALVES.strip("\n"),
        function("@triton.jit", f"{name}_finish", given, finish(plan, graph, wide)),
        function('@triton.jit(do_not_specialize=["rows"])', name,
                 [*signature, *([f"{size}: tl.constexpr"] for size in ("ROWS", "COLS", "DEPTH"))], body),
    ])  # fmt: skip


def function(head: str, name: str, parameters: Sequence[Sequence[str]], body: Sequence[str]) -> str:
    signature = "".join(f"    {', '.join(p)},\n" for p in parameters)
    return f"{head}\ndef {name}(\n{signature}):\n" + "\n".join(f"    {line}" for line in body)


def finish(plan: Plan, graph: fx.Graph, wide: Wide) -> list[str]:
    """Behind the products: biases, the projections kept if asked to, the epilogue in the wide type, the result."""
    lines, results = spell(graph)
    kept = [f"write({t}_kept, {t}, row, col, rows, shape, {t}_kept_at)" for t in plan.totals]
    return [
        *(f"{p.total} += read({p.bias}, row, col, rows, shape, {p.bias}_at).to(tl.float32)"
          for p in plan.products if p.bias),
        f"if {plan.totals[0]}_kept is not None:",
        *(f"    {line}" for line in kept),
        *(load(node, wide) for node in used(graph) if node.name not in plan.totals),
        *lines,
        *(line for result in results for line in store("out", str(result), wide, optional=False)),
    ]  # fmt: skip


def read_beside(plan: Plan, graph: fx.Graph) -> list[str]:
    """The operands that are read one element at a time."""
    return [*plan.biases, *(n.name for n in used(graph) if n.name not in plan.totals)]


def place() -> list[str]:
    """Where a program's tile lies: down a few tiles of rows first, then across, so that neighbours read the same."""
    return [
        "program = tl.program_id(0).to(tl.int64)",
        "columns = shape[len(shape) - 1]",
        f"span = {GROUP} * tl.cdiv(columns, COLS)",
        f"first = program // span * {GROUP}",
        f"high = tl.minimum(tl.cdiv(rows, ROWS) - first, {GROUP})",
        "row = (first + program % span % high) * ROWS + tl.arange(0, ROWS)[:, None]",
        "left = program % span // high * COLS",
        "across = tl.arange(0, COLS)[None, :]",
        "depth = tl.arange(0, DEPTH)",
    ]


def loop(x: str, of: Sequence[Product]) -> list[str]:
    """All products of one input; rows and columns behind the end read what is there again, and are never written."""
    at, size = f"{x}_ptr_at", f"{x}_ptr_at[2]"
    weights = [p.weight for p in of]
    ahead = [f"{x}_tile = {x}_ptr + row % rows * {at}[0] + depth[None, :] * {at}[1]"]
    ahead += [
        f"{w}_tile = {w}_ptr + (left + across) % columns * {w}_ptr_at[0] + depth[:, None] * {w}_ptr_at[1]"
        for w in weights
    ]
    inner = [f"{x}_now = tl.load({x}_tile, mask=depth[None, :] < {size} - step, other=0.0)"]
    for p in of:
        inner += [
            f"{p.weight}_now = tl.load({p.weight}_tile, mask=depth[:, None] < {size} - step, other=0.0)",
            f'{p.total} = tl.dot({x}_now, {p.weight}_now, {p.total}, input_precision="ieee")',
        ]
    inner += [f"{x}_tile += DEPTH * {at}[1]", *(f"{w}_tile += DEPTH * {w}_ptr_at[1]" for w in weights)]
    return [*ahead, f"for step in range(0, {size}, DEPTH):", *(f"    {line}" for line in inner)]
