"""The text of a recurrence over matrices: the walk over chunks, and what is computed in all of them at once."""

# Triton 3.6 cannot scan tensors of one column; such are scanned as vectors.
PRODUCTS = {
    "keyed": "tl.cumprod({}, 0, reverse={})",
    "shared": "tl.cumprod(tl.sum({}, 1), 0, reverse={})[:, None]",
}

DECAYS = '''
@triton.jit
def since_start(decay, t, part, steps, decays, at):
    """The products of a chunk's decays up to each step, that one counted."""
    now = tl.exp(tile(decay, t, part, steps, decays, at))
    return {from_start}


@triton.jit
def until_end(decay, t, row, part, steps, decays, at, CHUNK: tl.constexpr):
    """The products of a chunk's decays behind each step."""
    behind = tl.exp(tile(decay, t + 1, part, steps, decays, at))
    behind = tl.where(row == CHUNK - 1, 1.0, behind)
    return {to_end}
'''

SQUARE = '''
@triton.jit
def between_steps(decay, start, row, steps, at, BACK: tl.constexpr):
    """The products of the decays from a step, not counted, to each behind it: [later, earlier], or the other way around."""
    zero = tl.arange(0, 1)
    if BACK:
        behind = tl.exp(tile(decay, (start + row + 1)[:, None], zero[None, :], steps, 1, at))
        found = tl.cumprod(tl.where(row[:, None] < row[None, :], behind, 1.0), 0, reverse=True)
        return tl.where(row[:, None] <= row[None, :], found, 0.0)
    behind = tl.exp(tile(decay, (start + row + 1)[None, :], zero[:, None], steps, 1, at))
    found = tl.cumprod(tl.where(row[:, None] > row[None, :], behind, 1.0), 1, reverse=True)
    return tl.where(row[:, None] >= row[None, :], found, 0.0)
'''

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

WALK_DECAYS = """
if DOWN:
    scale = since_start(decay, t, part[None, :], steps, decays, decay_at)
    passed = tl.sum(tl.where(row[:, None] == CHUNK - 1, scale, 0.0), 0)[None, :]
else:
    scale = until_end(decay, t, row[:, None], part[None, :], steps, decays, decay_at, CHUNK)
    edge = tl.exp(tile(decay, (i * CHUNK + tl.arange(0, 1))[None, :], part[None, :], steps, decays, decay_at))
    passed = tl.sum(tl.where(row[:, None] == 0, scale, 0.0), 0)[None, :] * edge
s = s * tl.trans(passed)
x_t = x_t * scale
"""

OPEN = "decay = of_head(decay, head, inner, decay_at)"

START = """
    head, i = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = tl.arange(0, CHUNK)
    zero = tl.arange(0, 1)
    t = i * CHUNK + row[:, None]
    q, k, v = of_head(q, head, inner, q_at), of_head(k, head, inner, k_at), of_head(v, head, inner, v_at)
    states += (head * tl.cdiv(steps, CHUNK) + i) * keys * values
    plain = (0, 0, values, 1)
"""

# From the last step of a chunk to the first: `reach` is what decays from a step, not counted, to each behind it.
REACH = """
reach = tl.zeros((CHUNK, KEYS), tl.float32)
after = tl.full((1, KEYS), 1.0, tl.float32)
for j in range(0, CHUNK):
    now = CHUNK - 1 - j
    here = row[:, None] == now
    step = (i * CHUNK + now + zero)[None, :]
    reach = tl.where(here, 1.0, reach * after)
{lines}
    after = tl.exp(tile(decay, step, part[None, :], steps, decays, decay_at))
"""

READ = """
@triton.jit(do_not_specialize=["steps", "inner"])
def read_states(
    out, states, q, k, v, decay, q_at, k_at, v_at, decay_at, steps, keys, values, decays, inner,
    BACK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    value = tl.program_id(2).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    found = tl.zeros((CHUNK, VALUES), tl.float32)
{before}
    for p in range(0, tl.cdiv(keys, KEYS)):
        key = p * KEYS + tl.arange(0, KEYS)
        q_t = tile(q, t, key[None, :], steps, keys, q_at)
        k_t = tile(k, t, key[None, :], steps, keys, k_at)
        state = tile(states, key[:, None], value[None, :], keys, values, plain)
{lines}
        found = tl.dot(reader, state, found, input_precision=PRECISION)
{after}
    v_t = tile(v, t, value[None, :], steps, values, v_at)
    found = tl.dot({scores}, v_t, found, input_precision=PRECISION)
    keep(out + head * steps * values, found, t, value[None, :], steps, values, plain)
"""

SCALE = """
if BACK:
    scale = until_end(decay, t, row[:, None], part[None, :], steps, decays, decay_at, CHUNK)
else:
    scale = since_start(decay, t, part[None, :], steps, decays, decay_at)
"""

PAIRS = """
if BACK:
    scores = tl.dot(k_t, tl.trans(q_t), scores, input_precision=PRECISION)
else:
    scores = tl.dot(q_t, tl.trans(k_t), scores, input_precision=PRECISION)
"""

PAIRED = "{} = between_steps(decay, i * CHUNK, row, steps, decay_at, {})"

ROWS = "(row[:, None] <= row[None, :]) if BACK else (row[:, None] >= row[None, :])"

SCORED = """
score = tl.sum(q_t * reach * tile(k, step, key[None, :], steps, keys, k_at), 1)
if BACK:
    scores += tl.where(here, score[None, :], 0.0)
else:
    scores += tl.where(row[None, :] == now, score[:, None], 0.0)
"""

PULL = """
@triton.jit(do_not_specialize=["steps", "inner"])
def pull(
    dq_out, dk_out, dd_out, grad, states, ends, q, k, v, decay, grad_at, q_at, k_at, v_at, decay_at,
    steps, keys, values, decays, inner,
    KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    key = tl.program_id(2).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    grad = of_head(grad, head, inner, grad_at)
    ends += (head * tl.cdiv(steps, CHUNK) + i) * keys * values
    along = (0, 0, keys, 1)
    slopes = tl.zeros((CHUNK, CHUNK), tl.float32)
    slopes_back = tl.zeros((CHUNK, CHUNK), tl.float32)
    dq = tl.zeros((CHUNK, KEYS), tl.float32)
    dk = tl.zeros((CHUNK, KEYS), tl.float32)
    held = tl.zeros((1, KEYS), tl.float32)
    for p in range(0, tl.cdiv(values, VALUES)):
        value = p * VALUES + tl.arange(0, VALUES)
        v_t = tile(v, t, value[None, :], steps, values, v_at)
        grad_t = tile(grad, t, value[None, :], steps, values, grad_at)
        # States lie here with values as rows, so that no product has to be transposed.
        before = tile(states, key[None, :], value[:, None], keys, values, plain)
        behind = tile(ends, key[None, :], value[:, None], keys, values, plain)
        slopes = tl.dot(grad_t, tl.trans(v_t), slopes, input_precision=PRECISION)
        slopes_back = tl.dot(v_t, tl.trans(grad_t), slopes_back, input_precision=PRECISION)
        dq = tl.dot(grad_t, before, dq, input_precision=PRECISION)
        dk = tl.dot(v_t, behind, dk, input_precision=PRECISION)
        held += tl.sum(before * behind, 0)[None, :]
    q_t = tile(q, t, key[None, :], steps, keys, q_at)
    k_t = tile(k, t, key[None, :], steps, keys, k_at)
{lines}
    if dq_out is not None:
        keep(dq_out + head * steps * keys, dq, t, key[None, :], steps, keys, along)
    if dk_out is not None:
        keep(dk_out + head * steps * keys, dk, t, key[None, :], steps, keys, along)
"""

KEYED_SCALES = """
from_start = since_start(decay, t, part[None, :], steps, decays, decay_at)
to_end = until_end(decay, t, row[:, None], part[None, :], steps, decays, decay_at, CHUNK)
"""

SHARED_SCALES = """
first = tl.exp(tile(decay, (i * CHUNK + zero)[None, :], zero[:, None], steps, decays, decay_at))
from_start = tl.sum(tl.where(row[None, :] == 0, between, 0.0), 1)[:, None] * first
to_end = tl.sum(tl.where(row[:, None] == CHUNK - 1, between, 0.0), 0)[:, None]
"""

PULL_DECAYS = """
dq = dq * from_start
dk = dk * to_end
held = held * tl.sum(tl.where(row[:, None] == CHUNK - 1, from_start, 0.0), 0)[None, :]
later = tl.where(row[:, None] <= row[None, :], 1.0, 0.0)
earlier = tl.where(row[:, None] > row[None, :], 1.0, 0.0)
# What passes a step: from the state before the chunk, to the state behind it, and through the whole of it.
dd = tl.dot(later, q_t * dq, input_precision=PRECISION) + held
dd = tl.dot(earlier, k_t * dk, dd, input_precision=PRECISION)
"""

SHARED_PULL = """
pairs = tl.dot(q_t, tl.trans(k_t), input_precision=PRECISION)
crossing = tl.dot(later, pairs * between * slopes * earlier, input_precision=PRECISION)
dd = (tl.sum(crossing * earlier, 1) + tl.sum(dd, 1))[:, None]
# Each tile of keys has a sum of its own, over what it holds.
own = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + head
"""

BOTH = """
dq = tl.dot(slopes * between, k_t, dq, input_precision=PRECISION)
dk = tl.dot(slopes_back * between_back, q_t, dk, input_precision=PRECISION)
"""

KEYED_PULL = """
k_now = tile(k, step, key[None, :], steps, keys, k_at)
each = reach * tl.sum(tl.where(row[None, :] == now, slopes, 0.0), 1)[:, None]
dq += each * k_now
dk += tl.where(here, tl.sum(each * q_t, 0)[None, :], 0.0)
crossing = tl.cumsum(each * q_t, 0, reverse=True) * k_now
dd += tl.where(row[:, None] > now, crossing, 0.0)
"""

KEEP_DECAY = """
if dd_out is not None:
    keep(dd_out + own * steps * decays, dd, t, part[None, :], steps, decays, (0, 0, decays, 1))
"""


def kernels(kind: str) -> list[str]:
    """The walk over chunks; what each chunk reads of the states in front of it; the gradients of one chunk."""
    helpers = [products(kind)] if kind != "none" else []
    helpers += [SQUARE] if kind == "shared" else []
    return [*helpers, walk(kind), read_states(kind), pull(kind)]


def products(kind: str) -> str:
    scan = PRODUCTS[kind]
    return DECAYS.format(from_start=scan.format("now", False), to_end=scan.format("behind", True))


def walk(kind: str) -> str:
    scaled = kind != "none"
    part = "key" if kind == "keyed" else "tl.arange(0, 1)"
    text = WALK.format(part=part, open=_in(1, OPEN) if scaled else "", lines=_in(2, WALK_DECAYS) if scaled else "")
    return _dense(text)


def read_states(kind: str) -> str:
    after: list[str] = []
    if kind == "keyed":
        before, lines = [OPEN], ["part = key", REACH.format(lines=_in(1, SCORED)), SCALE]
    elif kind == "shared":
        before, lines, after = [OPEN, "part = zero", SCALE], [PAIRS], [PAIRED.format("between", "BACK")]
    else:
        before, lines = [f"between = tl.where({ROWS}, 1.0, 0.0)"], [PAIRS]
    reader = "reader = k_t if BACK else q_t" if kind == "none" else "reader = (k_t if BACK else q_t) * scale"
    places = {"before": _in(1, *before), "lines": _in(2, *lines, reader), "after": _in(1, *after)}
    scores = "scores" if kind == "keyed" else "scores * between"
    return _dense(READ.format(start=START.strip("\n"), scores=scores, **places))


def pull(kind: str) -> str:
    if kind == "keyed":
        reach = REACH.format(lines=_in(1, KEYED_PULL))
        lines = [OPEN, "part = key", KEYED_SCALES, PULL_DECAYS, reach, "own = head", KEEP_DECAY]
    elif kind == "shared":
        square, back = PAIRED.format("between", "False"), PAIRED.format("between_back", "True")
        lines = [OPEN, "part = zero", square, SHARED_SCALES, PULL_DECAYS, SHARED_PULL, KEEP_DECAY, back, BOTH]
    else:
        rows = "tl.where(row[:, None] {} row[None, :], 1.0, 0.0)"
        lines = [f"between = {rows.format('>=')}", f"between_back = {rows.format('<=')}", BOTH]
    return _dense(PULL.format(start=START.strip("\n"), lines=_in(1, *lines)))


def _in(depth: int, *texts: str) -> str:
    lines = [line for text in texts for line in text.strip("\n").splitlines()]
    return "\n".join("    " * depth + line for line in lines)


def _dense(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())
