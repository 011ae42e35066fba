"""The text around a recurrence over matrices: one head of an operand, its tiles, and the launchers."""

HEAD = '''"""{name}: generated from {origin} by gatec/kernels/recurrence.py; do not edit."""

import functools
import math

import torch
import triton
import triton.language as tl

DTYPES = {dtypes}
OUT = {out}
CHUNK = {chunk}
'''

TILES = '''
@triton.jit
def of_head(x, head, inner, at):
    """Where a head begins; there are `inner` of them for each step of the first stride."""
    return x + head // inner * at[0] + head % inner * at[1]


@triton.jit
def tile(x, t, i, steps, width, at):
    """Steps of one head, in float32; zero outside of it."""
    inside = (t < steps) & (i < width)
    return tl.load(x + t.to(tl.int64) * at[2] + i.to(tl.int64) * at[3], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def keep(x, value, t, i, steps, width, at):
    inside = (t < steps) & (i < width)
    tl.store(x + t.to(tl.int64) * at[2] + i.to(tl.int64) * at[3], value.to(x.dtype.element_ty), mask=inside)
'''

LAUNCHERS = '''
def heads_of(x):
    """Leading dimensions as two; a view wherever strides allow it."""
    lead = x.shape[:-2]
    inner = lead[-1] if lead else 1
    return x.reshape(math.prod(lead[:-1]), inner, *x.shape[-2:])


def launch(kernel, grid, outs, ins, strided, sizes, warps, **more):
    """`sizes` are steps, keys, values, decays and inner heads. Without a bound of its own ptxas spills to fit one program more."""
    with torch.cuda.device_of(ins[0]):
        kernel[grid](
            *outs, *ins, *(None if x is None else x.stride() for x in strided), *sizes,
            **more, KEYS=tile_of(sizes[1]), VALUES=tile_of(sizes[2]), CHUNK=CHUNK,
            PRECISION="ieee" if torch.version.hip else "tf32x3", num_warps=warps, enable_fp_fusion=True,
            **({{}} if torch.version.hip else {{"maxnreg": 255}}),
        )


def tile_of(width):
    return min(32, max(16, triton.next_power_of_2(width)))


def tiles_of(width):
    return triton.cdiv(width, tile_of(width))


def sizes_of(q, v, decay):
    return *q.shape[2:], v.shape[3], 1 if decay is None else decay.shape[3], q.shape[1]


def walked(last, x, y, decay, first, sizes, down):
    """The state in front of every chunk, in the order of the walk; `last` gets the one behind them all."""
    steps, keys, values, _, inner = sizes
    heads = x.shape[0] * inner
    states = torch.empty((heads, triton.cdiv(steps, CHUNK), keys, values), dtype=torch.float32, device=x.device)
    if states.numel() or last is not None:
        grid = heads, tiles_of(keys), tiles_of(values)
        launch(walk, grid, (states, last), (x, y, decay, first), (x, y, decay, first), sizes, 4, DOWN=down)
    return states


def forward({operands}):
    """What is read at every step, and the last state."""
    expect(({operands},), DTYPES)
    out = torch.empty(v.shape, dtype=OUT, device=v.device)
    last = torch.empty((*v.shape[:-2], k.shape[-1], v.shape[-1]), dtype=torch.float32, device=v.device)
    if last.numel():
        x, y, z, decays, first = (None if x is None else heads_of(x) for x in (q, k, v, {decay}, {state}))
        sizes = sizes_of(x, z, decays)
        states = walked(last, y, z, decays, first, sizes, False)
        read_chunks(out, states, (x, y, z, decays), sizes, False)
    return out, last


def read_chunks(out, states, ins, sizes, back):
    if out.numel():
        launch(read_states, (*states.shape[:2], tiles_of(sizes[2])), (out,), (states, *ins), ins, sizes, 4, BACK=back)


def backward(grad, last_grad, {operands}, needs=(True,) * {count}):
    """The gradient of each operand that needs one; the states are computed again."""
    expect(({operands},), DTYPES)
    wanted = dict(zip("{operands}".split(", "), needs))
    slope, ends, *ins = (None if x is None else heads_of(x) for x in (grad, last_grad, q, k, v, {decay}, {state}))
    ins, first = ins[:4], ins[4]
    sizes = sizes_of(ins[0], ins[2], ins[3])
    found = {{n: torch.empty_like(x, memory_format=torch.contiguous_format) for n, x in zip(wanted, ({operands},))}}
    found = {{n: x if wanted[n] else None for n, x in found.items()}}
    if not last_grad.numel():
        return tuple(found.values())
    down = walked(found.get("state"), ins[0], slope, ins[3], ends, sizes, True)
    if found["v"] is not None:
        read_chunks(found["v"], down, (*ins[:2], slope, ins[3]), sizes, True)
    parts = room_for_sums({decay}, 1 if {keyed} else tiles_of(sizes[1])) if wanted.get("decay") else None
    if grad.numel() and (found["q"] is not None or found["k"] is not None or parts is not None):
        states = walked(None, ins[1], ins[2], ins[3], first, sizes, False)
        grid = *states.shape[:2], tiles_of(sizes[1])
        launch(pull, grid, (found["q"], found["k"], parts), (slope, states, down, *ins), (slope, *ins), sizes, 2)
    if parts is not None:
        found["decay"] = parts.sum(0).to(found["decay"].dtype) if len(parts) > 1 else parts[0]
    return tuple(found.values())


def room_for_sums(x, tiles):
    """One for each tile of keys; rounded at once where there is only one."""
    return torch.empty((tiles, *x.shape), dtype=torch.float32 if tiles > 1 else x.dtype, device=x.device)
'''
