"""The text around a recurrence over matrices: one head of an operand, its tiles, and how a kernel is launched."""

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

LAUNCH = '''
def heads_of(x):
    """Leading dimensions as two; a view wherever strides allow it."""
    lead = x.shape[:-2]
    inner = lead[-1] if lead else 1
    return x.reshape(math.prod(lead[:-1]), inner, *x.shape[-2:])


def launch(kernel, grid, outs, ins, strided, sizes, warps, keys=None, values=None, **more):
    """`sizes` are steps, keys, values, decays and inner heads; `keys` and `values` are tiles that differ.

    Without a bound of its own ptxas spills to fit one program more.
    """
    with torch.cuda.device_of(ins[0]):
        kernel[grid](
            *outs, *ins, *(None if x is None else x.stride() for x in strided), *sizes,
            **more, KEYS=keys or tile_of(sizes[1]), VALUES=values or tile_of(sizes[2]), CHUNK=CHUNK,
            PRECISION="ieee" if torch.version.hip else "tf32x3", num_warps=warps, enable_fp_fusion=True,
            **({} if torch.version.hip else {"maxnreg": 255}),
        )


def tile_of(width):
    return min(32, max(16, triton.next_power_of_2(width)))


def tiles_of(width):
    return triton.cdiv(width, tile_of(width))


def sizes_of(q, v, decay):
    return *q.shape[2:], v.shape[3], 1 if decay is None else decay.shape[3], q.shape[1]


def room_for_sums(x, tiles):
    """One for each tile of keys; rounded at once where there is only one."""
    return torch.empty((tiles, *x.shape), dtype=torch.float32 if tiles > 1 else x.dtype, device=x.device)
'''
