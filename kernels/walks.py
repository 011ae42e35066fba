"""The text of a recurrence over matrices: what happens inside a chunk, the two walks over chunks, their launchers."""

HEAD = '''"""{name}: generated from {origin} by gatec/kernels/recurrence.py; do not edit."""

import functools
import math

import torch
import triton
import triton.language as tl

DTYPES = {dtypes}
OUT = {out}
CHUNK = {chunk}
PRECISION = "{precision}"
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

# -- inside a chunk ---------------------------------------------------------------------------------------------------

STEPS = """
reach = tl.zeros((CHUNK, DECAYS), tl.float32)  # from a step, not counted, to each
to_end = tl.zeros((CHUNK, DECAYS), tl.float32)
left = tl.full((1, DECAYS), 1.0, tl.float32)
after = tl.full((1, DECAYS), 1.0, tl.float32)
for j in range(0, CHUNK):
    now = CHUNK - 1 - j
    here = row[:, None] == now
    reach = tl.where(here, 1.0, reach * after)
    left = left * after
    to_end = tl.where(here, left, to_end)
{lines}
    after = tl.exp(tile(decay, (i * CHUNK + now + zero)[None, :], part[None, :], steps, decays, decay_at))
from_start = reach * after
total = left * after
"""

KEYED = """
k_now = tile(k, (i * CHUNK + now + zero)[None, :], key[None, :], steps, keys, k_at)
scores = tl.where(row[None, :] == now, tl.sum(q_t * reach * k_now, 1)[:, None], scores)
"""

KEYED_SLOPES = """
slope = tl.sum(tl.where(row[None, :] == now, slopes, 0.0), 1)[:, None]
each = reach * slope
dq += each * k_now
dk = tl.where(here, tl.sum(each * q_t, 0)[None, :], dk)
crossing = tl.where(row[:, None] > now, each * q_t * k_now, 0.0)
dd += tl.where(row[:, None] > now, tl.cumsum(crossing, 0, reverse=True), 0.0)
"""

SHARED = """
between = tl.where(row[None, :] == now, reach, between)
"""

SHARED_BACK = """
between_back = tl.where(here, tl.sum(reach, 1)[None, :], between_back)
"""


def _in(depth: int, *texts: str) -> str:
    lines = [line for text in texts for line in text.strip("\n").splitlines()]
    return "\n".join("    " * depth + line for line in lines)


def _zeros(*names: str, shape: str) -> str:
    return "\n".join(f"{n} = tl.zeros(({shape}), tl.float32)" for n in names)


def scores_of(kind: str, back: bool = False) -> str:
    """The scores of a chunk's pairs, and the decays from its start and to its end; with `back`, what their slopes give."""
    product = "tl.dot(q_t, tl.trans(k_t), input_precision=PRECISION)"
    if kind == "keyed":
        start = _zeros("scores", shape="CHUNK, CHUNK")
        return start + STEPS.format(lines=_in(1, KEYED, *([KEYED_SLOPES] if back else [])))
    if kind == "none":
        own = "between = tl.where(row[:, None] >= row[None, :], 1.0, 0.0)\n"
        own += "between_back = tl.where(row[:, None] <= row[None, :], 1.0, 0.0)\n" if back else ""
    else:
        names = ("between", "between_back") if back else ("between",)
        own = _zeros(*names, shape="CHUNK, CHUNK")
        own += STEPS.format(lines=_in(1, SHARED, *([SHARED_BACK] if back else [])))
    return f"{own}pairs = {product}\nscores = pairs * between\n"


# -- the walks --------------------------------------------------------------------------------------------------------

START = """
    head = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    key = tl.arange(0, KEYS)
    row = tl.arange(0, CHUNK)
    zero = tl.arange(0, 1)
    part = tl.arange(0, DECAYS)
    q, k, v = of_head(q, head, inner, q_at), of_head(k, head, inner, k_at), of_head(v, head, inner, v_at)
    if decay is not None:
        decay = of_head(decay, head, inner, decay_at)
    chunks = tl.cdiv(steps, CHUNK)
    size = keys * values
    plain = (0, 0, values, 1)
"""

ATTEND = """
@triton.jit(do_not_specialize=["steps", "inner"])
def attend(
    out, last, states, q, k, v, decay, state, q_at, k_at, v_at, decay_at, state_at, steps, keys, values, decays, inner,
    KEYS: tl.constexpr, VALUES: tl.constexpr, DECAYS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    s = tl.zeros((KEYS, VALUES), tl.float32)
    if state is not None:
        s += tile(of_head(state, head, inner, state_at), key[:, None], value[None, :], keys, values, state_at)
    for i in range(0, chunks):
        t = i * CHUNK + row[:, None]
        if states is not None:
            keep(states + (head * chunks + i) * size, s, key[:, None], value[None, :], keys, values, plain)
        q_t = tile(q, t, key[None, :], steps, keys, q_at)
        k_t = tile(k, t, key[None, :], steps, keys, k_at)
        v_t = tile(v, t, value[None, :], steps, values, v_at)
{scores}
        if out is not None:
            found = tl.dot(scores, v_t, input_precision=PRECISION)
            found = tl.dot(q_t{from_start}, s, found, input_precision=PRECISION)
            keep(out + head * steps * values, found, t, value[None, :], steps, values, plain)
{move}
        s = tl.dot(tl.trans(k_t{to_end}), v_t, s, input_precision=PRECISION)
    if last is not None:
        keep(last + head * size, s, key[:, None], value[None, :], keys, values, plain)
"""

PULL = """
@triton.jit(do_not_specialize=["steps", "inner"])
def pull(
    dq_out, dk_out, dv_out, dd_out, ds_out, grad, last, states, q, k, v, decay, grad_at, last_at, q_at, k_at, v_at, decay_at,
    steps, keys, values, decays, inner,
    KEYS: tl.constexpr, VALUES: tl.constexpr, DECAYS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    grad, last = of_head(grad, head, inner, grad_at), of_head(last, head, inner, last_at)
    # Each tile of values has sums of its own, over what it holds.
    own = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + head
    along_keys, along_decays = (0, 0, keys, 1), (0, 0, decays, 1)
    # States lie here with values as rows, so that no product has to be transposed.
    ds = tile(last, key[None, :], value[:, None], keys, values, last_at)
    for n in range(0, chunks):
        i = chunks - 1 - n
        t = i * CHUNK + row[:, None]
        along = i * CHUNK + row[None, :]
        q_t = tile(q, t, key[None, :], steps, keys, q_at)
        k_t = tile(k, t, key[None, :], steps, keys, k_at)
        v_t = tile(v, t, value[None, :], steps, values, v_at)
        grad_t = tile(grad, t, value[None, :], steps, values, grad_at)
        grad_back = tile(grad, along, value[:, None], steps, values, grad_at)
        before = tile(states + (head * chunks + i) * size, key[None, :], value[:, None], keys, values, plain)
        slopes = tl.dot(grad_t, tl.trans(v_t), input_precision=PRECISION)
        reads = tl.dot(grad_t, before, input_precision=PRECISION)
        writes = tl.dot(v_t, ds, input_precision=PRECISION)
"""

STORE = """
        if dq_out is not None:
            keep(dq_out + own * steps * keys, dq, t, key[None, :], steps, keys, along_keys)
        if dk_out is not None:
            keep(dk_out + own * steps * keys, dk, t, key[None, :], steps, keys, along_keys)
        if dv_out is not None:
            dv = tl.dot(grad_back, scores, input_precision=PRECISION)
            dv = tl.dot(ds, tl.trans(k_t{to_end}), dv, input_precision=PRECISION)
            keep(dv_out + head * steps * values, dv, along, value[:, None], steps, values, plain)
{move}
        ds = tl.dot(grad_back, q_t{from_start}, ds, input_precision=PRECISION)
    if ds_out is not None:
        keep(ds_out + head * size, ds, key[None, :], value[:, None], keys, values, plain)
"""

# Of a chunk's own pairs, those that meet across a step; of the state before it and after it, what passes the step.
DECAY_SLOPES = """
later = tl.where(row[:, None] <= row[None, :], 1.0, 0.0)
earlier = tl.where(row[:, None] > row[None, :], 1.0, 0.0)
read = q_t * reads
wrote = k_t * writes
held = tl.sum(before * ds, 0)[None, :] * total
"""

KEYED_DECAY = """
dd = tl.dot(later, read, dd, input_precision=PRECISION)
dd = tl.dot(earlier, wrote, dd, input_precision=PRECISION)
dd += held
"""

SHARED_DECAY = """
crossing = tl.dot(later, scores * slopes * earlier, input_precision=PRECISION)
passing = tl.dot(later, read, input_precision=PRECISION)
passing = tl.dot(earlier, wrote, passing, input_precision=PRECISION)
dd = (tl.sum(crossing * earlier, 1) + tl.sum(passing + held, 1))[:, None]
"""

KEEP_DECAY = """
if dd_out is not None:
    keep(dd_out + own * steps * decays, dd, t, part[None, :], steps, decays, along_decays)
"""

BOTH = """
slopes_back = tl.dot(v_t, tl.trans(grad_t), input_precision=PRECISION)
dq = tl.dot(slopes * between, k_t, reads, input_precision=PRECISION)
dk = tl.dot(slopes_back * between_back, q_t, writes, input_precision=PRECISION)
"""


def attend(kind: str) -> str:
    """The walk from the first chunk to the last."""
    scaled = kind != "none"
    move = "        s = s * tl.trans(total)" if scaled else ""
    text = ATTEND.format(
        start=START.strip("\n"), scores=_in(2, scores_of(kind)), from_start=" * from_start" if scaled else "",
        to_end=" * to_end" if scaled else "", move=move,
    )  # fmt: skip
    return _dense(text)


def pull(kind: str) -> str:
    """The walk from the last chunk to the first, whose states were written down."""
    scaled = kind != "none"
    by = {"from_start": " * from_start" if scaled else "", "to_end": " * to_end" if scaled else ""}
    move = "        ds = ds * total" if scaled else ""
    text = PULL.format(start=START.strip("\n"))
    body = [_zeros("dq", "dk", "dd", shape="CHUNK, KEYS")] if kind == "keyed" else []
    body.append(scores_of(kind, back=True))
    if scaled:
        body.append("reads = reads * from_start\nwrites = writes * to_end")
    body += ["dq += reads\ndk += writes"] if kind == "keyed" else [BOTH]
    if scaled:
        body += [DECAY_SLOPES, KEYED_DECAY if kind == "keyed" else SHARED_DECAY, KEEP_DECAY]
    return _dense(text.rstrip("\n") + "\n" + _in(2, *body) + STORE.format(move=move, **by))


def _dense(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


LAUNCHERS = '''
def heads_of(x):
    """Leading dimensions as two; a view wherever strides allow it."""
    lead = x.shape[:-2]
    inner = lead[-1] if lead else 1
    return x.reshape(math.prod(lead[:-1]), inner, *x.shape[-2:])


def launch(kernel, outs, ins, strided, sizes):
    """Of all heads and tiles of values; `sizes` are heads, inner ones, steps, keys, values and decays."""
    heads, inner, steps, keys, values, decays = sizes
    VALUES = tile_of(values)
    KEYS = max(16, triton.next_power_of_2(keys))
    with torch.cuda.device_of(ins[0]):
        kernel[(heads, triton.cdiv(values, VALUES))](
            *outs, *ins, *(None if x is None else x.stride() for x in strided), steps, keys, values, decays, inner,
            KEYS=KEYS, VALUES=VALUES, DECAYS=KEYS if {keyed} else 1, CHUNK=CHUNK,
            PRECISION="ieee" if torch.version.hip else PRECISION, num_warps=4, enable_fp_fusion=True,
        )


def tile_of(values):
    return min(64, max(16, triton.next_power_of_2(values)))


def sizes_of(q, v, decay):
    return q.shape[0] * q.shape[1], q.shape[1], *q.shape[2:], v.shape[3], 1 if decay is None else decay.shape[3]


def forward({operands}):
    """What is read at every step, and the last state."""
    expect(({operands},), DTYPES)
    out = torch.empty(v.shape, dtype=OUT, device=v.device)
    last = torch.empty((*v.shape[:-2], k.shape[-1], v.shape[-1]), dtype=torch.float32, device=v.device)
    if last.numel():
        walked(out, last, None, {operands})
    return out, last


def walked(out, last, states, {operands}):
    ins = [None if x is None else heads_of(x) for x in (q, k, v, {decay}, {state})]
    launch(attend, (out, last, states), ins, ins, sizes_of(ins[0], ins[2], ins[3]))


def backward(grad, last_grad, {operands}, needs=(True,) * {count}):
    """The gradient of each operand that needs one; the states in front of the chunks are computed again."""
    expect(({operands},), DTYPES)
    wanted = dict(zip("{operands}".split(", "), needs))
    ins = [None if x is None else heads_of(x) for x in (grad, last_grad, q, k, v, {decay})]
    sizes = sizes_of(ins[2], ins[4], ins[5])
    heads, _, steps, keys, values, _ = sizes
    tiles = triton.cdiv(values, tile_of(values))
    sums = {{n: room_for_sums(x, tiles) if wanted.get(n) else None for n, x in (("q", q), ("k", k), ("decay", {decay}))}}
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device) if wanted["v"] else None
    ds = torch.empty(last_grad.shape, dtype=torch.float32, device=v.device) if wanted.get("state") else None
    if last_grad.numel():
        states = torch.empty((heads, triton.cdiv(steps, CHUNK), keys, values), dtype=torch.float32, device=v.device)
        walked(None, None, states, {operands})
        outs = (sums["q"], sums["k"], dv, sums["decay"], ds)
        launch(pull, outs, (*ins[:2], states, *ins[2:]), ins, sizes)
    types = dict(zip(wanted, DTYPES))
    found = {{n: None if x is None else settled(x, types[n]) for n, x in sums.items()}}
    found |= {{"v": dv, "state": None if ds is None else ds.to(types["state"])}}
    return tuple(found[n] for n in wanted)


def room_for_sums(x, tiles):
    """One for each tile of values; rounded at once where there is only one."""
    return torch.empty((tiles, *x.shape), dtype=torch.float32 if tiles > 1 else x.dtype, device=x.device)


def settled(x, dtype):
    return x.sum(0).to(dtype) if len(x) > 1 else x[0]
'''
