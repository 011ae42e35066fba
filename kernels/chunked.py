"""What the kernels of a recurrence over matrices share: a chunk's place, products of its decays, and texts that fit in."""

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

OPEN = "decay = of_head(decay, head, inner, decay_at)"
FROM_START = "since_start(decay, t, part[None, :], steps, decays, decay_at)"
TO_END = "until_end(decay, t, row[:, None], part[None, :], steps, decays, decay_at, CHUNK)"
PAIRED = "{} = between_steps(decay, i * CHUNK, row, steps, decay_at, {})"

START = """
head, i = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
row = tl.arange(0, CHUNK)
zero = tl.arange(0, 1)
t = i * CHUNK + row[:, None]
plain = (0, 0, values, 1)
along = (0, 0, keys, 1)
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


def helpers(kind: str) -> list[str]:
    """The functions that all kernels of a kind call."""
    if kind == "none":
        return []
    scan = PRODUCTS[kind]
    products = DECAYS.format(from_start=scan.format("now", False), to_end=scan.format("behind", True))
    return [products, SQUARE] if kind == "shared" else [products]


def reached(*lines: str) -> str:
    return REACH.format(lines=indented(1, *lines))


def of_heads(*names: str) -> str:
    return "\n".join(f"{name} = of_head({name}, head, inner, {name}_at)" for name in names)


def zeros(*names: str, width: str = "CHUNK") -> str:
    return "\n".join(f"{name} = tl.zeros((CHUNK, {width}), tl.float32)" for name in names)


def indented(depth: int, *texts: str) -> str:
    lines = [line for text in texts for line in text.strip("\n").splitlines()]
    return "\n".join("    " * depth + line for line in lines)


def dense(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())
