"""Scan: h[t] = a[t] * h[t-1] + b[t] over one dimension, where a and b are pointwise functions of operands.

Time is cut into chunks, and three launches follow each other: every chunk is reduced to one step (the product of its
decays, its state from zero); those steps are walked; every chunk is walked again from its true start. All other
dimensions are the lanes of a tile, found through strides as gatec.kernels.tile finds them. Backward is the same
recurrence on r = a * dh from the last step to the first, so no decay has to be shifted; a, b and their gradients are
computed again from the operands, and only the states are saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from gatec.derive import Derived
from gatec.kernel import Kernel
from gatec.kernels.functions import Wide, needed
from gatec.kernels.spelling import spell, wide_of
from gatec.kernels.tile import CHECKS, MERGE, REDUCE, TILE

HEAD = '''"""{name}: generated from {origin} by gatec/kernels/scan.py; do not edit."""

import functools
import math

import torch
import triton
import triton.language as tl

DTYPES = {dtypes}
OUT = {out}
WIDE = torch.{wide}
CHUNK = 64
'''

STEPS = '''
@triton.jit
def step(x, t, row, col, rows, shape, strides, along):
    """One step of an operand; `along` is None where it is the same at every step."""
    if along is not None:
        x += t * along
    return read(x, row, col, rows, shape, strides)


@triton.jit
def put(out, value, t, row, col, rows, shape, strides, along):
    if along is not None:
        out += t * along
    write(out, value, row, col, rows, shape, strides)


@triton.jit
def fold(chunk, row, col, rows, width):
    """The offsets of a tile in a workspace of chunks x rows x width, and which of them exist."""
    return (chunk * rows + row) * width + col, (row < rows) & (col < width)
'''

CARRIES = '''
@triton.jit(do_not_specialize=["chunks", "lanes"])
def carries(product, local, start, first, last, chunks, lanes, DOWN: tl.constexpr, LANES: tl.constexpr):
    """Walk the chunks: `start` is the state in front of each, `last` the state behind them all."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = lane < lanes
    state = tl.zeros((LANES,), start.dtype.element_ty)
    if first is not None:
        state = tl.load(first + lane, mask=inside, other=0).to(start.dtype.element_ty)
    for i in range(0, chunks):
        chunk = chunks - 1 - i if DOWN else i
        at = chunk.to(tl.int64) * lanes + lane
        tl.store(start + at, state.to(start.dtype.element_ty), mask=inside)
        decay = tl.load(product + at, mask=inside, other=0).to(start.dtype.element_ty)
        state = decay * state + tl.load(local + at, mask=inside, other=0).to(start.dtype.element_ty)
    if last is not None:
        tl.store(last + lane, state.to(last.dtype.element_ty), mask=inside)
'''

KERNEL = """
@triton.jit(do_not_specialize=["rows", "across", "steps"])
def {name}(
    {pointers}, {workspace},
    {strides},
    {alongs},
    rows, across, shape, steps,
    DOWN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) // across) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (tl.program_id(0).to(tl.int64) % across) * COLS + tl.arange(0, COLS)[None, :]
    chunk = tl.program_id(1).to(tl.int64)
    place_at, inside = fold(chunk, row, col, rows, shape[len(shape) - 1])
{start}
    for i in range(0, CHUNK):
        t = chunk * CHUNK + (CHUNK - 1 - i if DOWN else i)
        if t < steps:
{body}
{end}
"""

LAUNCHERS = '''
def lanes_form(x, dim, rank):
    """The shape and the strides of all dimensions but time, and the stride along it: None where nothing moves."""
    new = rank - x.ndim
    sizes, strides = (1,) * new + tuple(x.shape), (0,) * new + x.stride()
    along = strides[dim] if sizes[dim] != 1 else None
    return (torch.Size(sizes[:dim] + sizes[dim + 1 :]), strides[:dim] + strides[dim + 1 :]), along


def scan_launch(kernel, outs, ins, work, full, dim, down):
    operands = *outs, *ins
    first = next(x for x in operands if x is not None)
    forms = [lanes_form(x, dim, len(full)) if x is not None else (None, 1) for x in operands]
    lanes = torch.Size((*full[:dim], *full[dim + 1 :]))
    whole = (lanes, torch.empty(lanes, device="meta").stride())
    rows, shape, strides = merged(lanes, 0, whole, *(f for f, _ in forms))
    COLS = min(128, triton.next_power_of_2(shape[-1]))
    ROWS = max(1, min(128 // COLS, triton.next_power_of_2(rows)))
    across = triton.cdiv(shape[-1], COLS)
    grid = (triton.cdiv(rows, ROWS) * across, triton.cdiv(full[dim], CHUNK))
    with torch.cuda.device_of(first):
        kernel[grid](
            *operands, *work, *strides[1:], *(a for _, a in forms), rows, across, shape, full[dim],
            DOWN=down, ROWS=ROWS, COLS=COLS, CHUNK=CHUNK, num_warps=4, enable_fp_fusion=True,
        )


def walked(product, local, first, down, last=None):
    """The state in front of every chunk."""
    start = torch.empty_like(local)
    chunks, lanes = local.shape[0], local[0].numel()
    with torch.cuda.device_of(local):
        carries[(triton.cdiv(lanes, 128),)](
            product, local, start, first, last, chunks, lanes,
            DOWN=down, LANES=128, num_warps=4, enable_fp_fusion=True,
        )
    return start


def workspaces(full, dim, like):
    lanes = full[:dim] + full[dim + 1 :]
    return [torch.empty((triton.cdiv(full[dim], CHUNK), *lanes), dtype=WIDE, device=like.device) for _ in range(2)]


def first_state(h0, lanes):
    return None if h0 is None else h0.to(WIDE).expand(lanes).contiguous()
'''

FORWARD = '''
def forward({operands}, h0=None, dim=1, reverse=False):
    """All states; without `dim`, h0 is the one before the first."""
    expect(({operands},), DTYPES)
    full = broadcast({shapes})
    lanes = full[:dim] + full[dim + 1 :]
    out = room(({operands},), full, OUT)
    if out.numel():
        product, local = workspaces(full, dim, out)
        scan_launch({name}_reduce, [], [{read}], [product, local], full, dim, reverse)
        start = walked(product, local, first_state(h0, lanes), reverse)
        scan_launch({name}_apply, [out], [{read}], [start], full, dim, reverse)
    return out
'''

BACKWARD = '''
def backward(grad, h, {operands}, h0=None, dim=1, reverse=False):
    """The gradient of each operand, None where it has none, and of h0."""
    full = h.shape
    lanes = full[:dim] + full[dim + 1 :]
    first = first_state(h0, lanes)
{rooms}
    dh0 = None if h0 is None else torch.zeros(lanes, dtype=WIDE, device=h.device)
    if h.numel():
        product, local = workspaces(full, dim, h)
        scan_launch({name}_fold, [], [grad, {fold}], [product, local], full, dim, not reverse)
        start = walked(product, local, None, not reverse, dh0)
        before = earlier(h, first, dim, reverse)
        scan_launch({name}_backward, [{grads}], [grad, before, {read}], [start], full, dim, not reverse)
{settle}
    return {results}, None if dh0 is None else dh0.sum_to_size(h0.shape).to(h0.dtype)


def earlier(h, first, dim, reverse):
    """The state before each step."""
    edge = h.narrow(dim, 0, 1)
    start = torch.zeros_like(edge) if first is None else first.to(h.dtype).unsqueeze(dim)
    rest = h.narrow(dim, 1 if reverse else 0, h.shape[dim] - 1)
    return torch.cat([rest, start] if reverse else [start, rest], dim)
'''


def render(name: str, origin: str, decay: Derived, new: Derived) -> Kernel:
    """The decay and the new part, each a function of operands as gatec.derive makes it; equal names are one operand."""
    dtypes = {x.name: x.meta["val"].dtype for d in (decay, new) for x in d.forward.find_nodes(op="placeholder")}
    wide: Wide = "float64" if "float64" in (wide_of(decay.forward), wide_of(new.forward)) else "float32"
    out = new.forward.output_node().meta["val"][0].dtype
    head = HEAD.format(name=name, origin=origin, dtypes=tuple(dtypes.values()), out=out, wide=wide)
    made = Scan(name, list(dtypes), decay, new, wide)
    kernels = [made.reduce(), made.apply(), made.fold(), made.backward()]
    functions = needed((line for text in kernels for line in text.splitlines()), wide)
    parts = [
        head,
        TILE,
        *functions,
        STEPS,
        CARRIES,
        *kernels,
        CHECKS,
        MERGE,
        REDUCE,
        LAUNCHERS,
        made.launch(),
        made.pull(),
    ]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


class Scan:
    """The four kernels of one scan; what differs is what a step reads, computes and writes."""

    def __init__(self, name: str, names: list[str], decay: Derived, new: Derived, wide: Wide) -> None:
        self.name, self.names, self.decay, self.new, self.wide = name, names, decay, new, wide
        known = {x.name for d in (decay, new) for x in d.backward.find_nodes(op="placeholder")
                 if x.name != "grad" and x.meta["val"].is_floating_point()}  # fmt: skip
        self.grads = {n: f"{n}_grad" for n in names if n in known}

    def used(self, *graphs: fx.Graph) -> list[str]:
        read = {n.name for g in graphs for n in g.find_nodes(op="placeholder") if n.users}
        return [n for n in self.names if n in read]

    def gate(self, graph: fx.Graph, prefix: str, **renamed: str) -> tuple[list[str], list[str | None]]:
        """The lines of one graph, its own names made different from those of the other."""
        own = [n for n in graph.nodes if n.op == "call_function"]
        copied = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "output":
                result = copied.output(fx.node.map_arg(node.args[0], env.__getitem__))
                result.meta = dict(node.meta)
                continue
            env[node] = copied.node_copy(node, env.__getitem__)
            if node in own:
                env[node].name = f"{prefix}{node.name}"
        return spell(copied, renamed)

    def kernel(self, name: str, outs: Sequence[str], ins: Sequence[str], work: Sequence[str], start: Sequence[str],
               body: Sequence[str], end: Sequence[str]) -> str:  # fmt: skip
        pointers = [*outs, *ins]
        return KERNEL.format(
            name=f"{self.name}_{name}", pointers=", ".join(pointers), workspace=", ".join(work),
            strides=", ".join(f"{p}_at" for p in pointers), alongs=", ".join(f"{p}_along" for p in pointers),
            start="\n".join(f"    {line}" for line in start), body="\n".join(f"            {line}" for line in body),
            end="\n".join(f"    {line}" for line in end),
        ).replace("{}", "")  # fmt: skip

    def loads(self, names: Sequence[str]) -> list[str]:
        read = "{0}_t = step({0}, t, row, col, rows, shape, {0}_at, {0}_along).to(tl.{1})"
        return [read.format(n, self.wide) for n in names]

    def forward_lines(self, graphs: Sequence[Derived]) -> tuple[list[str], list[str]]:
        renamed = {n: f"{n}_t" for n in self.names}
        lines, values = [], []
        for prefix, derived in zip(("a_", "b_"), graphs, strict=False):
            made, results = self.gate(derived.forward, prefix, **renamed)
            lines += made
            values.append(str(results[0]))
        return lines, values

    def zeros(self, name: str, value: str) -> str:
        return f"{name} = tl.full((ROWS, COLS), {value}, tl.{self.wide})"

    def saved(self, *pairs: tuple[str, str]) -> list[str]:
        return [f"tl.store({to} + place_at, {x}.to({to}.dtype.element_ty), mask=inside)" for to, x in pairs]

    def start(self, name: str) -> list[str]:
        return [f"{name} = tl.load(start + place_at, mask=inside, other=0).to(tl.{self.wide})"]

    def reduce(self) -> str:
        ins = self.used(self.decay.forward, self.new.forward)
        lines, (a, b) = self.forward_lines([self.decay, self.new])
        body = [*self.loads(ins), *lines, f"local_h = ({a}) * local_h + ({b})", f"decays = decays * ({a})"]
        end = self.saved(("product", "decays"), ("local", "local_h"))
        return self.kernel("reduce", [], ins, ["product", "local"],
                           [self.zeros("local_h", "0.0"), self.zeros("decays", "1.0")], body, end)  # fmt: skip

    def apply(self) -> str:
        ins = self.used(self.decay.forward, self.new.forward)
        lines, (a, b) = self.forward_lines([self.decay, self.new])
        body = [*self.loads(ins), *lines, f"state = ({a}) * state + ({b})",
                "put(out, state, t, row, col, rows, shape, out_at, out_along)"]  # fmt: skip
        return self.kernel("apply", ["out"], ins, ["start"], self.start("state"), body, [])

    def fold(self) -> str:
        ins = self.used(self.decay.forward)
        lines, (a,) = self.forward_lines([self.decay])
        body = [
            *self.loads(["grad", *ins]),
            *lines,
            f"local_r = ({a}) * (grad_t + local_r)",
            f"decays = decays * ({a})",
        ]
        end = self.saved(("product", "decays"), ("local", "local_r"))
        return self.kernel("fold", [], ["grad", *ins], ["product", "local"],
                           [self.zeros("local_r", "0.0"), self.zeros("decays", "1.0")], body, end)  # fmt: skip

    def backward(self) -> str:
        """dh = grad + r; da = dh * h[t-1]; db = dh; then r = a * dh for the step before."""
        graphs = (self.decay.forward, self.decay.backward, self.new.backward)
        ins = self.used(*graphs)
        lines, (a,) = self.forward_lines([self.decay])
        renamed = {n: f"{n}_t" for n in self.names}
        of_a, da = self.gate(self.decay.backward, "da_", **renamed, grad="decay_grad")
        of_b, db = self.gate(self.new.backward, "db_", **renamed, grad="state_grad")
        parts: dict[str, list[str]] = {}
        for derived, results in ((self.decay, da), (self.new, db)):
            own = [x.name for x in derived.forward.find_nodes(op="placeholder")]
            for operand, value in zip(own, results, strict=True):
                parts.setdefault(operand, []).extend([] if value is None else [f"({value})"])
        outs = list(self.grads.values())
        body = [*self.loads(["grad", "before", *ins]), *lines, "state_grad = grad_t + carried",
                "decay_grad = state_grad * before_t", *of_a, *of_b]  # fmt: skip
        for operand, grad in self.grads.items():
            total = " + ".join([f"tl.zeros((ROWS, COLS), tl.{self.wide})", *parts[operand]])
            body.append(f"put({grad}, {total}, t, row, col, rows, shape, {grad}_at, {grad}_along)")
        body.append(f"carried = ({a}) * state_grad")
        return self.kernel("backward", outs, ["grad", "before", *ins], ["start"], self.start("carried"), body, [])

    def launch(self) -> str:
        return FORWARD.format(
            name=self.name, operands=", ".join(self.names), shapes=", ".join(f"{n}.shape" for n in self.names),
            read=", ".join(self.used(self.decay.forward, self.new.forward)),
        )  # fmt: skip

    def pull(self) -> str:
        pairs = list(self.grads.items())
        return BACKWARD.format(
            name=self.name, operands=", ".join(self.names), fold=", ".join(self.used(self.decay.forward)),
            rooms="\n".join(f"    {g} = room_for_gradient({n}, full)" for n, g in pairs),
            grads=", ".join(g for _, g in pairs),
            read=", ".join(self.used(self.decay.forward, self.decay.backward, self.new.backward)),
            settle="\n".join(f"    {g} = reduced({g}, {n})" for n, g in pairs),
            results="(" + ", ".join(self.grads.get(n, "None") for n in self.names) + ",)",
        )  # fmt: skip
