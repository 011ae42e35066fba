"""What each chunk reads of the state in front of it, and of its own steps; backwards, the gradient of what it put there."""

from gatec.kernels.chunked import FROM_START, OPEN, PAIRED, START, TO_END, dense, indented, of_heads, reached, zeros

READ = """
@triton.jit(do_not_specialize=["steps", "inner"])
def read_states(
    out, states, {operands}, {places}, steps, keys, values, decays, inner,
    BACK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    states += (head * tl.cdiv(steps, CHUNK) + i) * keys * values
    value = tl.program_id(2).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    found = tl.zeros((CHUNK, VALUES), tl.float32)
{before}
    for p in range(0, tl.cdiv(keys, KEYS)):
        key = p * KEYS + tl.arange(0, KEYS)
        q_t = tile(q, t, key[None, :], steps, keys, q_at)
        k_t = tile(k, t, key[None, :], steps, keys, k_at)
        state = tile(states, key[:, None], value[None, :], keys, values, plain)
{lines}
        found = tl.dot(reader, state, found, input_precision=PRECISION)
    v_t = tile(v, t, value[None, :], steps, values, v_at)
{square}
    found = tl.dot({scores}, v_t, found, input_precision=PRECISION)
{after}
    keep(out + head * steps * values, found, t, value[None, :], steps, values, plain)
"""

SCALE = """
if BACK:
    scale = {to_end}
else:
    scale = {from_start}
"""

PAIRS = """
if BACK:
    scores = tl.dot(k_t, tl.trans(q_t), scores, input_precision=PRECISION)
else:
    scores = tl.dot(q_t, tl.trans(k_t), scores, input_precision=PRECISION)
"""

LEAVES = """
leaves_t = tile(leaves, t, key[None, :], steps, keys, leaves_at)
crossed = tl.dot(k_t if BACK else q_t, tl.trans(leaves_t), crossed, input_precision=PRECISION)
"""

ROWS = "(row[:, None] <= row[None, :]) if BACK else (row[:, None] >= row[None, :])"

SCORED = """
score = tl.sum(q_t * reach * tile(k, step, key[None, :], steps, keys, k_at), 1)
if BACK:
    scores += tl.where(here, score[None, :], 0.0)
else:
    scores += tl.where(row[None, :] == now, score[:, None], 0.0)
"""

CROSSED = """
if BACK:
    leaves_t = tile(leaves, t, key[None, :], steps, keys, leaves_at)
    cross = tl.sum(leaves_t * reach * tile(k, step, key[None, :], steps, keys, k_at), 1)
    crossed += tl.where(here, cross[None, :], 0.0)
else:
    cross = tl.sum(q_t * reach * tile(leaves, step, key[None, :], steps, keys, leaves_at), 1)
    crossed += tl.where(row[None, :] == now, cross[:, None], 0.0)
"""

# What was put at a step is read there; a step erases only after what it erases was read.
ADDED = """
if BACK:
    crossed = tl.where(row[:, None] == row[None, :], 0.0, crossed)
undo_t = tile(undo + head * steps * values, t, value[None, :], steps, values, plain)
found = tl.dot({crossed}, undo_t, found, input_precision=PRECISION)
"""


def read_states(kind: str, delta: bool) -> str:
    moved = ["q", "k", "v", "decay", *(["leaves"] if delta else [])]
    opened = [of_heads("q", "k", "v", *(["leaves"] if delta else []))]
    before = [zeros("scores", *(["crossed"] if delta else []))]
    scale = SCALE.format(from_start=FROM_START, to_end=TO_END)
    lines, square = [PAIRS, *([LEAVES] if delta else [])], []
    if kind == "keyed":
        before = [OPEN, *before]
        lines = ["part = key", reached(SCORED, *([CROSSED] if delta else [])), scale]
    elif kind == "shared":
        before, square = [OPEN, *before, "part = zero", scale], [PAIRED.format("between", "BACK")]
    else:
        before = [*before, f"between = tl.where({ROWS}, 1.0, 0.0)"]
    lines += ["reader = k_t if BACK else q_t" if kind == "none" else "reader = (k_t if BACK else q_t) * scale"]
    by = "" if kind == "keyed" else " * between"
    after = [ADDED.format(crossed=f"crossed{by}")] if delta else []
    return dense(READ.format(
        operands=", ".join([*moved, *(["undo"] if delta else [])]), places=", ".join(f"{n}_at" for n in moved),
        start=indented(1, START, *opened), before=indented(1, *before), lines=indented(2, *lines),
        square=indented(1, *square), scores=f"scores{by}", after=indented(1, *after),
    ))  # fmt: skip
