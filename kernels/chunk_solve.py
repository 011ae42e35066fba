"""What the steps of a chunk erase of each other: a unit triangular system for each chunk, all of them solved at once.

A step reads the state with `reader`, and puts minus what it found there along `writer`; before that, x and y were put
there. So what it puts is `owed` times the state in front of the chunk, and `seen` of the chunk itself. Downwards the
same holds of the state's gradient, where x and y are already put there at the step that reads. For the walk the keys
are kept with what decays of them until the chunk is left, and `passed`, what the whole chunk keeps of a state.
"""

from gatec.kernels.chunked import FROM_START, OPEN, PAIRED, START, TO_END, dense, indented, of_heads, reached

SOLVE = """
@triton.jit(do_not_specialize=["steps", "inner"])
def solve(
    owed, seen, put, leaves, passed, reader, writer, x, y, decay, reader_at, writer_at, x_at, y_at, decay_at,
    steps, keys, values, decays, inner,
    DOWN: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    # What a step owes is [giver, taker]; what it sees is [taker, giver].
    system = tl.zeros((CHUNK, CHUNK), tl.float32)
    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    for p in range(0, tl.cdiv(keys, KEYS)):
        key = p * KEYS + tl.arange(0, KEYS)
        reader_t = tile(reader, t, key[None, :], steps, keys, reader_at)
        writer_t = tile(writer, t, key[None, :], steps, keys, writer_at)
        x_t = tile(x, t, key[None, :], steps, keys, x_at)
{scores}
{between}
    apart = row[:, None] != row[None, :]
    system = tl.where(apart, system, 0.0)
    if not DOWN:
        scores = tl.where(apart, scores, 0.0)
    # Minus the inverse, row by row.
    inverse = tl.where(apart, tl.zeros((CHUNK, CHUNK), tl.float32), -1.0)
    for n in range(1, CHUNK):
        now = CHUNK - 1 - n if DOWN else n
        owes = tl.sum(tl.where(row[None, :] == now, system, 0.0), 1)
        known = tl.sum(owes[:, None] * inverse, 0)
        inverse = tl.where(row[:, None] == now, inverse - known[None, :], inverse)
    y = of_head(y, head, inner, y_at)
    for p in range(0, tl.cdiv(values, VALUES)):
        value = p * VALUES + tl.arange(0, VALUES)
        y_t = tile(y, t, value[None, :], steps, values, y_at)
        found = tl.dot(inverse, tl.dot(scores, y_t, input_precision=PRECISION), input_precision=PRECISION)
        keep(seen + head * steps * values, found, t, value[None, :], steps, values, plain)
    for p in range(0, tl.cdiv(keys, KEYS)):
        key = p * KEYS + tl.arange(0, KEYS)
        reader_t = tile(reader, t, key[None, :], steps, keys, reader_at)
        writer_t = tile(writer, t, key[None, :], steps, keys, writer_at)
        x_t = tile(x, t, key[None, :], steps, keys, x_at)
{scaled}
        found = tl.dot(inverse, reader_t, input_precision=PRECISION)
        keep(owed + head * steps * keys, found, t, key[None, :], steps, keys, along)
        keep(put + head * steps * keys, x_t, t, key[None, :], steps, keys, along)
        keep(leaves + head * steps * keys, writer_t, t, key[None, :], steps, keys, along)
"""

PRODUCTS = """
system = tl.dot(writer_t, tl.trans(reader_t), system, input_precision=PRECISION)
scores = tl.dot(reader_t, tl.trans(x_t), scores, input_precision=PRECISION)
"""

KEYED = """
if DOWN:
    asked = tl.sum(tl.where(here, reader_t, 0.0), 0)[None, :] * reach
    system += tl.where(row[None, :] == now, tl.sum(writer_t * asked, 1)[:, None], 0.0)
    scores += tl.where(here, tl.sum(x_t * asked, 1)[None, :], 0.0)
else:
    asked = reader_t * reach
    owes = tl.sum(asked * tl.sum(tl.where(here, writer_t, 0.0), 0)[None, :], 1)
    system += tl.where(here, owes[None, :], 0.0)
    sees = tl.sum(asked * tl.sum(tl.where(here, x_t, 0.0), 0)[None, :], 1)
    scores += tl.where(row[None, :] == now, sees[:, None], 0.0)
"""

BETWEEN = """
if DOWN:
    system = system * late
    scores = scores * early
else:
    system = system * early
    scores = scores * late
"""

SCALES = """
from_start = {from_start}
to_end = {to_end}
whole = tl.sum(tl.where(row[:, None] == CHUNK - 1, from_start, 0.0), 0)[None, :]
keep(passed + (head * tl.cdiv(steps, CHUNK) + i) * decays, whole, zero[:, None], part[None, :], 1, decays, along)
"""

SCALED = """
reader_t = reader_t * (to_end if DOWN else from_start)
writer_t = writer_t * (from_start if DOWN else to_end)
x_t = x_t * (from_start if DOWN else to_end)
"""


def solve(kind: str) -> str:
    names = "reader", "writer", "x"
    scales = SCALES.format(from_start=FROM_START, to_end=TO_END)
    scores, between, scaled = [PRODUCTS], [], [SCALED]
    if kind == "keyed":
        scores, scaled = ["part = key", reached(KEYED)], ["part = key", scales, SCALED]
    elif kind == "shared":
        squares = [PAIRED.format("late", "False"), PAIRED.format("early", "True")]
        between = ["part = zero", scales, *squares, BETWEEN]
    else:
        rows = "tl.where(row[:, None] {} row[None, :], 1.0, 0.0)"
        between, scaled = [f"late = {rows.format('>=')}", f"early = {rows.format('<=')}", BETWEEN], []
    opened = [OPEN] if kind != "none" else []
    return dense(SOLVE.format(
        start=indented(1, START, of_heads(*names), *opened), scores=indented(2, *scores),
        between=indented(1, *between), scaled=indented(2, *scaled),
    ))  # fmt: skip
