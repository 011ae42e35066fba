"""The text around a depthwise convolution: reads beside a place, sums over positions, launchers."""

HEAD = '''"""{name}: generated from {origin} by gatec/kernels/conv.py; do not edit."""

import functools
import math

import torch
import triton
import triton.language as tl

DTYPES = {dtypes}
OUT = {out}
SEEN = {seen}
WIDE = torch.{wide}
ORDER = {order}
CHANNEL = {channel}
AXES = {axes}
TAPS = {taps}
TILE = {tile}
'''

BESIDE = '''
@triton.jit
def beside(x, row, col, rows, shape, strides, shift, inside):
    """What stands `shift` elements further, zero where that is outside."""
    at, real = place(row, col, rows, shape, strides)
    return tl.load(x + at + shift, mask=real & inside, other=0)
'''

KERNEL = """
@triton.jit(do_not_specialize=["rows", "across", {lengths}])
def {name}(
    {pointers},
    {strides},
    {alongs},
    {lengths_plain}, rows, across, shape,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) // across) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (tl.program_id(0).to(tl.int64) % across) * COLS + tl.arange(0, COLS)[None, :]
{body}
"""

SUMS = """
@triton.jit(do_not_specialize=["rows", "across", "steps", {lengths}])
def {name}(
    {pointers}, sums,
    {strides},
    {alongs},
    {lengths_plain}, rows, across, steps, shape,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64) // across
    col = (tl.program_id(0).to(tl.int64) % across) * COLS + tl.arange(0, COLS)[None, :]
{start}
    for i in range(0, steps):
        row = (program * steps + i) * ROWS + tl.arange(0, ROWS)[:, None]
{body}
    width = shape[len(shape) - 1]
    here = col < width
{end}
"""

LAUNCHERS = '''
def seen(x):
    """A view of an operand of the convolution in the order of the result's dimensions."""
    return x.reshape((1,) * (len(ORDER) - x.dim()) + tuple(x.shape)).permute(ORDER)


def unseen(grad, x):
    """The gradient of such an operand, in its own order and shape."""
    if grad is None:
        return None
    back = sorted(range(len(ORDER)), key=lambda d: ORDER[d])
    grad = grad.permute(back)
    return grad.view(x.shape) if grad.numel() == x.numel() else reduced(grad, x)


def lies_along(full, *near):
    """What is convolved has the result's own length: it is not repeated along the axes of the taps."""
    found = broadcast(*(x.shape for x in near))
    if any(found[d] != full[d] for d in AXES):
        raise TypeError(f"this kernel was generated for a result as long as what is convolved, not {full} for {found}")


def only(full, d, stride):
    """The form of an operand that changes along one dimension."""
    return tuple(n if i == d else 1 for i, n in enumerate(full)), tuple(stride if i == d else 0 for i in range(len(full)))


def geometry(full, operands, last=None):
    """Rows, shape and strides; dimension `last` is the columns'. Numbers stand for weights, with so many per channel."""
    forms = [
        None if x is None else only(full, CHANNEL, x) if isinstance(x, int) else padded(x, len(full)) for x in operands
    ]
    forms += [only(full, d, 1) for d in AXES]
    order = [d for d in range(len(full)) if d != last] + ([] if last is None else [last])
    turned = [f and (torch.Size(f[0][d] for d in order), tuple(f[1][d] for d in order)) for f in forms]
    whole = tuple(full[d] for d in order)
    dense = torch.Size(whole), torch.empty(full, device="meta").permute(order).stride()
    rows, shape, strides = merged(torch.Size(whole), 0 if last is None else 1, dense, *turned)
    return rows, shape, strides[1:]


def padded(x, rank):
    new = rank - x.dim()
    return (1,) * new + tuple(x.shape), (0,) * new + x.stride()


def alongs(operands, full):
    """How far the next place along each axis is, in the operands that are read beside it."""
    return [x.stride(d) if x.shape[d] != 1 else 0 for x in operands for d in AXES]


def launch(kernel, full, operands, near):
    """`near` are operands that are read beside each place; a number among the operands stands for a weight."""
    rows, shape, strides = geometry(full, [x if form is None else form for x, form in operands])
    tensors = [x for x, _ in operands]
    COLS = min(TILE, triton.next_power_of_2(shape[-1]))
    ROWS = max(1, min(TILE // COLS, triton.next_power_of_2(rows)))
    across = triton.cdiv(shape[-1], COLS)
    with torch.cuda.device_of(next(x for x in tensors if x is not None)):
        kernel[(triton.cdiv(rows, ROWS) * across,)](
            *tensors, *strides, *alongs(near, full), *(full[d] for d in AXES), rows, across, shape,
            ROWS=ROWS, COLS=COLS, num_warps=4, enable_fp_fusion=True,
        )


def summed(kernel, full, operands):
    """Sums over all positions: for every tap and channel, and of the gradient itself."""
    rows, shape, strides = geometry(full, operands, CHANNEL)
    COLS = min(64, triton.next_power_of_2(shape[-1]))
    ROWS = TILE // COLS
    across, tiles = triton.cdiv(shape[-1], COLS), triton.cdiv(rows, ROWS)
    steps = max(1, triton.cdiv(tiles * across, 1024))
    programs = triton.cdiv(tiles, steps)
    sums = torch.empty((programs, TAPS + 1, full[CHANNEL]), dtype=WIDE, device=operands[0].device)
    with torch.cuda.device_of(sums):
        kernel[(programs * across,)](
            *operands, sums, *strides, *alongs(operands[1:], full), *(full[d] for d in AXES), rows, across, steps, shape,
            ROWS=ROWS, COLS=COLS, num_warps=4, enable_fp_fusion=True,
        )
    return sums.sum(0)
'''

FORWARD = """
def forward({operands}):
    expect(({operands},), DTYPES)
    {views}
    full = broadcast({shapes})
    lies_along(full, {near})
    out = room(({shaped}), full, OUT)
    if out.numel():
        launch({name}_forward, full, [(out, None), {read}], [{near}])
    return out
"""

BACKWARD = '''
def backward(grad, {operands}, needs={needs}):
    """The gradient of each operand that needs one, in the operand's own shape."""
    expect((grad, {operands}), (OUT, *DTYPES))
    {views}
    full = grad.shape
    slope = room(({shaped}), full, SEEN)
{rooms}
    totals = None
    if grad.numel():
        launch({name}_slopes, full, [(slope, None), {slopes_out}(grad, None), {read}], [{near}])
        if {weights_needed}:
            totals = summed({name}_sums, full, [slope, {near}])
        if {inputs_needed}:
            launch({name}_inputs, full, [{inputs_out}(slope, None), {inputs_read}], [slope])
{settle}
    return ({results},)


def weight_grad(totals, weight):
    return torch.zeros_like(weight) if totals is None else totals[:TAPS].t().to(weight.dtype).reshape(weight.shape)


def bias_grad(totals, bias):
    return torch.zeros_like(bias) if totals is None else totals[TAPS].to(bias.dtype)
'''
