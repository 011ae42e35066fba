"""The walk of a recurrence over matrices from chunk to chunk, upwards or downwards: the state in front of each.

With a delta rule a step also puts `undo`, minus what it erases, along a key of its own. For a whole chunk that is an affine
map of the state in front of it: `owed` times the state, and `seen`. So such a program holds all keys of its values.
"""

from gatec.kernels.chunked import FROM_START, OPEN, TO_END, dense, indented

WALK = """
@triton.jit(do_not_specialize=["steps", "inner"])
def walk(
    states, last, x, y, decay, first, x_at, y_at, decay_at, first_at, steps, keys, values, decays, inner,
    DOWN: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    key = tl.program_id(1).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    value = tl.program_id(2).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    row = tl.arange(0, CHUNK)
    part = {part}
    x, y = of_head(x, head, inner, x_at), of_head(y, head, inner, y_at)
    chunks = tl.cdiv(steps, CHUNK)
    plain = (0, 0, values, 1)
    s = tl.zeros((KEYS, VALUES), tl.float32)
    if first is not None:
        s += tile(of_head(first, head, inner, first_at), key[:, None], value[None, :], keys, values, first_at)
{open}
    for n in range(0, chunks):
        i = chunks - 1 - n if DOWN else n
        t = i * CHUNK + row[:, None]
        keep(states + (head * chunks + i) * keys * values, s, key[:, None], value[None, :], keys, values, plain)
        x_t = tile(x, t, key[None, :], steps, keys, x_at)
        y_t = tile(y, t, value[None, :], steps, values, y_at)
{lines}
        s = tl.dot(tl.trans(x_t), y_t, s, input_precision=PRECISION)
    if last is not None:
        keep(last + head * keys * values, s, key[:, None], value[None, :], keys, values, plain)
"""

SCALED = """
if DOWN:
    scale = {from_start}
    passed = tl.sum(tl.where(row[:, None] == CHUNK - 1, scale, 0.0), 0)[None, :]
else:
    scale = {to_end}
    edge = tl.exp(tile(decay, (i * CHUNK + tl.arange(0, 1))[None, :], part[None, :], steps, decays, decay_at))
    passed = tl.sum(tl.where(row[:, None] == 0, scale, 0.0), 0)[None, :] * edge
s = s * tl.trans(passed)
x_t = x_t * scale
"""

ERASING = """
@triton.jit(do_not_specialize=["steps", "inner"])
def walk(
    states, last, undo, y, first, x, leaves, owed, seen, passed, y_at, first_at, steps, keys, values, decays, inner,
    DOWN: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    key = tl.arange(0, KEYS)
    value = tl.program_id(1).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    row = tl.arange(0, CHUNK)
    y = of_head(y, head, inner, y_at)
    x, leaves, owed = x + head * steps * keys, leaves + head * steps * keys, owed + head * steps * keys
    seen, undo = seen + head * steps * values, undo + head * steps * values
    chunks = tl.cdiv(steps, CHUNK)
    plain, along = (0, 0, values, 1), (0, 0, keys, 1)
    s = tl.zeros((KEYS, VALUES), tl.float32)
    if first is not None:
        s += tile(of_head(first, head, inner, first_at), key[:, None], value[None, :], keys, values, first_at)
    for n in range(0, chunks):
        i = chunks - 1 - n if DOWN else n
        t = i * CHUNK + row[:, None]
        keep(states + (head * chunks + i) * keys * values, s, key[:, None], value[None, :], keys, values, plain)
        owed_t = tile(owed, t, key[None, :], steps, keys, along)
        undo_t = tile(seen, t, value[None, :], steps, values, plain)
        undo_t = tl.dot(owed_t, s, undo_t, input_precision=PRECISION)
        keep(undo, undo_t, t, value[None, :], steps, values, plain)
{passed}
        x_t = tile(x, t, key[None, :], steps, keys, along)
        y_t = tile(y, t, value[None, :], steps, values, y_at)
        s = tl.dot(tl.trans(x_t), y_t, s, input_precision=PRECISION)
        leaves_t = tile(leaves, t, key[None, :], steps, keys, along)
        s = tl.dot(tl.trans(leaves_t), undo_t, s, input_precision=PRECISION)
    if last is not None:
        keep(last + head * keys * values, s, key[:, None], value[None, :], keys, values, plain)
"""

PASSED = """
here = passed + (head * chunks + i) * decays
s = s * tile(here, {part}[:, None], tl.arange(0, 1)[None, :], decays, 1, (0, 0, 1, 1))
"""


def walk(kind: str, delta: bool) -> str:
    """With a delta rule decays are part of what comes ready from where the chunk's system was solved."""
    part = "key" if kind == "keyed" else "tl.arange(0, 1)"
    scaled = kind != "none"
    if delta:
        return dense(ERASING.format(passed=indented(2, PASSED.format(part=part)) if scaled else ""))
    lines = indented(2, SCALED.format(from_start=FROM_START, to_end=TO_END)) if scaled else ""
    return dense(WALK.format(part=part, open=indented(1, OPEN) if scaled else "", lines=lines))
