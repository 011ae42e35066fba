"""Matrix products beside a pointwise epilogue: what is multiplied, and how generated text launches it or asks the library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from gatec.kernels.pointwise import gradient_names, used

Tiles = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Product:
    """rows @ weight.T + bias, added to the projection called `total`."""

    total: str
    rows: str
    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class Plan:
    """All operands in order, and what is multiplied; the epilogue reads the totals, and any operands."""

    operands: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    products: tuple[Product, ...]

    @property
    def totals(self) -> list[str]:
        return list(dict.fromkeys(p.total for p in self.products))

    @property
    def inputs(self) -> list[str]:
        return list(dict.fromkeys(p.rows for p in self.products))

    @property
    def weights(self) -> list[str]:
        return [p.weight for p in self.products]

    @property
    def biases(self) -> list[str]:
        return [p.bias for p in self.products if p.bias]

    @property
    def packs(self) -> bool:
        """Whether one product with all weights in one would do."""
        alone = len(self.totals) == len(self.products) > 1 == len(self.inputs)
        return alone and len(self.biases) in (0, len(self.products))

    @property
    def outside(self) -> list[str]:
        """What no product reads."""
        read = {*self.inputs, *self.weights, *self.biases}
        return [name for name in self.operands if name not in read]


TABLE = """
TILES = {{
{rows}
}}
FIRST = {first!r}
"""

LAUNCH = '''
def launch_products(kernel, tiles, outs, ins, xs, weights):
    ROWS, COLS, DEPTH, warps, stages = TILES[tiles]
    shape = outs[0].shape
    known = ((x.shape, x.stride()) if x is not None and x.dim() else None for x in (*outs, *ins))
    rows, sizes, strides = merged(shape, 1, *known)
    # A result is a whole tile, also where there is only one row or one column.
    strides = [tuple(n or 1 for n in at) if i < len(outs) else at for i, at in enumerate(strides)]
    xs = [x.reshape(rows, x.shape[-1]) for x in xs]
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(shape[-1], COLS),)
    with torch.cuda.device_of(outs[0]):
        kernel[grid](
            *outs, *ins, *xs, *weights, *strides,
            *((*x.stride(), x.shape[1]) for x in xs), *(w.stride() for w in weights), rows, sizes,
            ROWS=ROWS, COLS=COLS, DEPTH=DEPTH, num_warps=warps, num_stages=2 if torch.version.hip else stages,
            enable_fp_fusion=True,
        )


def room_for_totals(x, columns):
    """The projections, or their gradients, side by side."""
    return torch.empty((*x.shape[:-1], TOTALS * columns), dtype=x.dtype, device=x.device)


def flat(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def multiply(out, x, weight, bias, add=False):
    """out = x @ weight.T + bias, or added to it, by the library."""
    out, x = out.view(math.prod(out.shape[:-1]), out.shape[-1]), flat(x)
    if add:
        out.addmm_(x, weight.t())
        return out if bias is None else out.add_(bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def side_by_side(weights):
    """Weights that lie one behind the other in memory as one, without a copy; None where they do not."""
    first, at = weights[0], weights[0].storage_offset()
    for w in weights:
        same = w.untyped_storage()._cdata == first.untyped_storage()._cdata
        if not same or w.storage_offset() != at or not w.is_contiguous() or w.shape[1] != first.shape[1]:
            return None
        at += w.numel()
    return first.as_strided((sum(w.shape[0] for w in weights), first.shape[1]), (first.shape[1], 1))
'''

GRADIENTS = '''
def rows_gradient(x, start, slopes, parts):
    """The gradient of what was multiplied: slope @ weight for each of its products, on top of `start`."""
    together = side_by_side([w for _, w in parts]) if PACKS and x.numel() else None
    parts = parts if together is None else [(slopes, together)]
    total = None if start is None else flat(start)
    for slope, weight in parts:
        slope = slope.reshape(math.prod(slope.shape[:-1]), slope.shape[-1])
        total = slope @ weight if total is None else total.addmm_(slope, weight)
    return total.view(x.shape)


def weight_gradient(slope, x):
    return flat(slope).t() @ flat(x)


def bias_gradient(slope):
    return flat(slope).sum(0)
'''

PROJECTED = '''

def projected({operands}, together=False):
    """All projections by the library; `together` in one product where the weights lie side by side."""
    kept = room_for_totals({first}, {weight}.shape[0])
{packed}    {halves} = kept.chunk(TOTALS, -1)
{products}
    return kept
'''

PACKED = """    packed = side_by_side([{weights}]) if together else None
    if packed is not None:
        multiply(kept, {first}, packed, {bias})
        return kept
"""

FORWARD = '''

@torch.no_grad()
def forward({operands}, tiles=FIRST, kept=None):
    """One kernel; the projections are written to `kept` where it is given."""
    expect(({operands},), DTYPES)
    out = torch.empty((*{first}.shape[:-1], {weight}.shape[0]), dtype=OUT, device={first}.device)
    if out.numel():
        totals = kept.chunk(TOTALS, -1) if kept is not None else [None] * TOTALS
        launch_products({name}_forward, tiles, [out, *totals], [{ins}], [{inputs}], [{weights}])
    return out


@torch.no_grad()
def forward_keeping({operands}, tiles=FIRST):
    """The result, and the projections for backward."""
    kept = room_for_totals({first}, {weight}.shape[0])
    return forward({operands}, tiles, kept), kept


@torch.no_grad()
def library_keeping({operands}, together=False):
    """The library's products and one generated kernel behind them."""
    expect(({operands},), DTYPES)
    kept = projected({operands}, together)
    {halves} = kept.chunk(TOTALS, -1)
    out = torch.empty((*{first}.shape[:-1], {weight}.shape[0]), dtype=OUT, device={first}.device)
    if out.numel():
        launch({name}_epilogue, [out], [{read}])
    return out, kept


def library({operands}, together=False):
    return library_keeping({operands}, together)[0]
'''

BACKWARD = '''

@torch.no_grad()
def backward(grad, {operands}, needs={needs}, kept=None):
    """The gradient of each operand that needs one, in its own shape; without `kept` the projections are made again."""
    expect((grad, {operands}), (OUT, *DTYPES))
    kept = projected({operands}) if kept is None else kept
    {halves} = kept.chunk(TOTALS, -1)
    slopes = torch.empty_like(kept) if {multiplied} else None
    {slopes} = slopes.chunk(TOTALS, -1) if slopes is not None else [None] * TOTALS
{rooms}    grads = [{grads}]
    if grad.numel() and any(g is not None for g in grads):
        launch({name}_backward, grads, [{read}])
{settle}
    return {results}
'''


def table(configs: Mapping[str, Tiles], plan: Plan) -> str:
    rows = "\n".join(f"    {name!r}: {tiles}," for name, tiles in configs.items())
    constants = f"TOTALS = {len(plan.totals)}\nPACKS = {plan.packs}\n"
    return TABLE.format(rows=rows, first=next(iter(configs))) + constants


def launchers(name: str, plan: Plan, ins: Sequence[str], forward: fx.Graph, backward: fx.Graph) -> list[str]:
    """`ins` are the operands that the kernel's epilogue reads, biases first."""
    common = {"name": name, "operands": ", ".join(plan.operands), "first": plan.inputs[0], "weight": plan.weights[0],
              "halves": ", ".join(plan.totals) + ","}  # fmt: skip
    written = FORWARD.format(**common, ins=", ".join(ins), inputs=", ".join(plan.inputs),
                             weights=", ".join(plan.weights), read=", ".join(n.name for n in used(forward)))  # fmt: skip
    return [_projected(plan, common), written, _backward(plan, common, backward)]


def _projected(plan: Plan, common: Mapping[str, str]) -> str:
    seen: set[str] = set()
    lines = []
    for p in plan.products:
        lines.append(f"    multiply({p.total}, {p.rows}, {p.weight}, {p.bias}{', add=True' * (p.total in seen)})")
        seen.add(p.total)
    bias = f"torch.cat([{', '.join(plan.biases)}])" if plan.biases else "None"
    packed = PACKED.format(weights=", ".join(plan.weights), first=plan.inputs[0], bias=bias) if plan.packs else ""
    return PROJECTED.format(**common, packed=packed, products="\n".join(lines))


def _backward(plan: Plan, common: Mapping[str, str], graph: fx.Graph) -> str:
    names = [n.name for n in graph.find_nodes(op="placeholder")][1:]
    found = dict(zip(names, gradient_names(names, graph), strict=True))
    number = {x: i for i, x in enumerate(plan.operands)}
    beside = {x: g for x, g in found.items() if g and x not in plan.totals}
    multiplied = sorted(number[x] for x in {*plan.inputs, *plan.weights, *plan.biases})
    rooms = [
        f"    {g} = room_for_gradient({x}, grad.shape) if needs[{number[x]}] else None\n" for x, g in beside.items()
    ]
    made = {x: _settled(plan, x, beside) for x in plan.operands if x not in plan.outside or x in beside}
    return BACKWARD.format(
        **common,
        needs=tuple(x in made for x in plan.operands),
        multiplied=" or ".join(f"needs[{i}]" for i in multiplied),
        slopes=", ".join(f"{t}_grad" for t in plan.totals) + ",",
        rooms="".join(rooms),
        grads=", ".join([*(f"{t}_grad" for t in plan.totals), *beside.values()]),
        read=", ".join(n.name for n in used(graph)),
        settle="\n".join(f"    {x}_grad = {text} if needs[{number[x]}] else None" for x, text in made.items()),
        results="(" + ", ".join(f"{x}_grad" if x in made else "None" for x in plan.operands) + ",)",
    )


def _settled(plan: Plan, x: str, beside: Mapping[str, str]) -> str:
    """The text of one operand's gradient."""
    for p in plan.products:
        if x == p.weight:
            return f"weight_gradient({p.total}_grad, {p.rows})"
        if x == p.bias:
            return f"bias_gradient({p.total}_grad)"
    own = f"reduced({beside[x]}, {x})" if x in beside else "None"
    if x not in plan.inputs:
        return own
    parts = ", ".join(f"({p.total}_grad, {p.weight})" for p in plan.products if p.rows == x)
    return f"rows_gradient({x}, {own}, slopes, [{parts}])"
