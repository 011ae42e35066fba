"""The text around a scan: steps of operands, carries between chunks, launchers."""

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
    chunks, lanes = local.shape[0], local.shape[1:].numel()
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
def {forward}({operands}, h0=None, dim=1, reverse=False):
    """All states; without `dim`, h0 is the one before the first."""
    {check}full = broadcast({shapes})
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
def {backward}(grad, h, {operands}, h0=None, dim=1, reverse=False, needs={needs}):
    """The gradient of each operand that needs one, None for the others, and of h0."""
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


STILL = '''
def room_for_sums(x, full, dim):
    """The gradient of an operand that is the same at every step is summed over each chunk."""
    chunks = triton.cdiv(full[dim], CHUNK)
    return torch.empty((*full[:dim], chunks, *full[dim + 1 :]), dtype=WIDE, device=x.device)
'''

REGION = '''
def forward({operands}):
    """All states."""
    expect(({operands},), DTYPES)
    return states({names}, h0={first}, dim={dim}, reverse={reverse})


def backward(grad, {operands}, needs={needs}, kept=None):
    """The gradient of each operand that needs one; `kept` are the states."""
    h = forward({operands}) if kept is None else kept
    ({found},), {first_grad} = pulled(grad, h, {names}, h0={first}, dim={dim}, reverse={reverse}, needs=({asked},))
    return ({results},)
'''
