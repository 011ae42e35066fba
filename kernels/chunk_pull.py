"""The gradients of one chunk of a recurrence over matrices, but for those of its values.

Each reader (q, and with a delta rule what is erased) meets each writer (k, and with a delta rule the key that it is
erased along); what they are paired with are the gradient of what was read, and the value that was put there.
"""

from collections.abc import Iterable

from gatec.kernels.chunked import FROM_START, OPEN, PAIRED, START, TO_END, dense, indented, of_heads, reached, zeros

READERS = {"q": "grad", "erase": "undo_back"}
WRITERS = {"k": "v", "write": "undo"}

PULL = """
@triton.jit(do_not_specialize=["steps", "inner"])
def pull(
    {outs}, dd_out, grad, states, ends, {operands}, grad_at, {places},
    steps, keys, values, decays, inner,
    KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
{start}
    key = tl.program_id(2).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    states += (head * tl.cdiv(steps, CHUNK) + i) * keys * values
    ends += (head * tl.cdiv(steps, CHUNK) + i) * keys * values
{rooms}
    held = tl.zeros((1, KEYS), tl.float32)
    for p in range(0, tl.cdiv(values, VALUES)):
        value = p * VALUES + tl.arange(0, VALUES)
{tiles}
        # States lie here with values as rows, so that no product has to be transposed.
        before = tile(states, key[None, :], value[:, None], keys, values, plain)
        behind = tile(ends, key[None, :], value[:, None], keys, values, plain)
{products}
        held += tl.sum(before * behind, 0)[None, :]
{lines}
{keeps}
"""

DOT = "{0} = tl.dot({1}, {2}, {0}, input_precision=PRECISION)"

KEYED_SCALES = """
from_start = {from_start}
to_end = {to_end}
"""

SHARED_SCALES = """
first = tl.exp(tile(decay, (i * CHUNK + zero)[None, :], zero[:, None], steps, decays, decay_at))
from_start = tl.sum(tl.where(row[None, :] == 0, between, 0.0), 1)[:, None] * first
to_end = tl.sum(tl.where(row[:, None] == CHUNK - 1, between, 0.0), 0)[:, None]
"""

SCALED = """
held = held * tl.sum(tl.where(row[:, None] == CHUNK - 1, from_start, 0.0), 0)[None, :]
later = tl.where(row[:, None] <= row[None, :], 1.0, 0.0)
earlier = tl.where(row[:, None] > row[None, :], 1.0, 0.0)
"""

PASSED = """
# What passes a step: from the state before the chunk, to the state behind it, and through the whole of it.
dd = tl.dot(later, {reads}, input_precision=PRECISION) + held
dd = tl.dot(earlier, {writes}, dd, input_precision=PRECISION)
"""

SHARED = """
crossing = tl.dot(later, crossing * between * earlier, input_precision=PRECISION)
dd = (tl.sum(crossing * earlier, 1) + tl.sum(dd, 1))[:, None]
# Each tile of keys has a sum of its own, over what it holds.
own = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + head
"""

KEEP_DECAY = """
if dd_out is not None:
    keep(dd_out + own * steps * decays, dd, t, part[None, :], steps, decays, (0, 0, decays, 1))
"""

KEEP = """
if d{0}_out is not None:
    keep(d{0}_out + head * steps * keys, d{0}, t, key[None, :], steps, keys, along)
"""


class Pull:
    """The text for one kind of decay, with its readers and its writers."""

    def __init__(self, kind: str, delta: bool) -> None:
        self.kind = kind
        self.readers = ["q", "erase"] if delta else ["q"]
        self.writers = ["k", "write"] if delta else ["k"]
        self.keyed = [name for both in zip(self.readers, self.writers, strict=True) for name in both]
        self.pairs = [(r, w) for r in self.readers for w in self.writers]

    def text(self) -> str:
        moved = ["q", "k", "v", "decay", *self.keyed[2:]]
        undo = ["undo", "undo_back"] if len(self.pairs) > 1 else []
        opened = [of_heads("grad", "v", *self.keyed), *(f"{n} += head * steps * values" for n in undo)]
        decayed = {"none": self.plain, "shared": self.shared, "keyed": self.by_key}[self.kind]
        loads = [f"{n}_t = tile({n}, t, key[None, :], steps, keys, {n}_at)" for n in self.keyed]
        return dense(PULL.format(
            outs=", ".join(f"d{n}_out" for n in self.keyed), operands=", ".join([*moved, *undo]),
            places=", ".join(f"{n}_at" for n in moved), start=indented(1, START, *opened),
            rooms=indented(1, zeros(*self.squares()), zeros(*(f"d{n}" for n in self.keyed), width="KEYS")),
            tiles=indented(2, *map(_value, ["grad", "v", *undo])), products=indented(2, *self.products()),
            lines=indented(1, *loads, *self.apart(), *decayed()),
            keeps=indented(1, *(KEEP.format(n) for n in self.keyed)),
        ))  # fmt: skip

    def squares(self) -> list[str]:
        """Products of gradients and values, [reader, writer]; the other way around too, where they meet in products."""
        both = [] if self.kind == "keyed" else [f"back_{r}_{w}" for r, w in self.pairs]
        return [f"slopes_{r}_{w}" for r, w in self.pairs] + both

    def products(self) -> list[str]:
        found = []
        for r, w in self.pairs:
            grad, value = f"{READERS[r]}_t", f"{WRITERS[w]}_t"
            found += [DOT.format(f"slopes_{r}_{w}", grad, f"tl.trans({value})")]
            found += [] if self.kind == "keyed" else [DOT.format(f"back_{r}_{w}", value, f"tl.trans({grad})")]
        found += [DOT.format(f"d{r}", f"{READERS[r]}_t", "before") for r in self.readers]
        return found + [DOT.format(f"d{w}", f"{WRITERS[w]}_t", "behind") for w in self.writers]

    def apart(self) -> list[str]:
        """What is erased at a step was there before it."""
        return [
            f"{name} = tl.where(row[:, None] == row[None, :], 0.0, {name})"
            for name in self.squares()
            if name.split("_")[1] == "erase"
        ]

    def plain(self) -> list[str]:
        rows = "tl.where(row[:, None] {} row[None, :], 1.0, 0.0)"
        return [f"between = {rows.format('>=')}", f"between_back = {rows.format('<=')}", *self.met()]

    def met(self) -> list[str]:
        ahead = [DOT.format(f"d{r}", f"slopes_{r}_{w} * between", f"{w}_t") for r, w in self.pairs]
        return ahead + [DOT.format(f"d{w}", f"back_{r}_{w} * between_back", f"{r}_t") for r, w in self.pairs]

    def scaled(self) -> list[str]:
        reads, writes = (_sum(f"{n}_t * d{n}" for n in names) for names in (self.readers, self.writers))
        return [
            SCALED,
            *(f"d{r} = d{r} * from_start" for r in self.readers),
            *(f"d{w} = d{w} * to_end" for w in self.writers),
            PASSED.format(reads=reads, writes=writes),
        ]

    def shared(self) -> list[str]:
        square, back = PAIRED.format("between", "False"), PAIRED.format("between_back", "True")
        crossing = [
            f"crossing {'+=' if n else '='} tl.dot({r}_t, tl.trans({w}_t), input_precision=PRECISION) * slopes_{r}_{w}"
            for n, (r, w) in enumerate(self.pairs)
        ]
        scales = [OPEN, "part = zero", square, SHARED_SCALES, *self.scaled()]
        return [*scales, *crossing, SHARED, KEEP_DECAY, back, *self.met()]

    def by_key(self) -> list[str]:
        column = "tl.sum(tl.where(row[None, :] == now, slopes_{0}, 0.0), 1)[:, None]"
        each = [f"{w}_now = tile({w}, step, key[None, :], steps, keys, {w}_at)" for w in self.writers]
        each += [f"slope_{r}_{w} = {column.format(f'{r}_{w}')}" for r, w in self.pairs]
        for r in self.readers:
            each += [f"d{r} += reach * ({_sum(f'slope_{r}_{w} * {w}_now' for w in self.writers)})"]
        for w in self.writers:
            each += [f"passed_{w} = reach * ({_sum(f'slope_{r}_{w} * {r}_t' for r in self.readers)})",
                     f"d{w} += tl.where(here, tl.sum(passed_{w}, 0)[None, :], 0.0)"]  # fmt: skip
        crossing = _sum(f"passed_{w} * {w}_now" for w in self.writers)
        each += [f"dd += tl.where(row[:, None] > now, tl.cumsum({crossing}, 0, reverse=True), 0.0)"]
        scales = KEYED_SCALES.format(from_start=FROM_START, to_end=TO_END)
        return [OPEN, "part = key", scales, *self.scaled(), reached(*each), "own = head", KEEP_DECAY]


def pull(kind: str, delta: bool) -> str:
    return Pull(kind, delta).text()


def _value(name: str) -> str:
    """One tile of what has the width of values; `undo` and its gradient are as the walk left them."""
    place = "plain" if name.startswith("undo") else f"{name}_at"
    return f"{name}_t = tile({name}, t, value[None, :], steps, values, {place})"


def _sum(terms: Iterable[str]) -> str:
    return " + ".join(terms)
