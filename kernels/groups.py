"""Text of kernels over rows that are sorted by group: which tile belongs to which group, products, and ragged products.

The rows of group e are ends[e-1]:ends[e]. `order` holds the number of each row's pair, and pair // fan is the row of
a matrix that all pairs of it share: such a matrix is read through `order`, so nothing is gathered before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FIND = '''
@triton.jit
def group_at(tile, ends_ptr, groups, rows, E: tl.constexpr, ROWS: tl.constexpr):
    """The group that a tile of rows belongs to, its first row, and where the group ends: 0 if there is no such tile."""
    number = tl.arange(0, E)
    end = tl.load(ends_ptr + number, mask=number < groups, other=0).to(tl.int32)
    start = tl.load(ends_ptr + number - 1, mask=(number > 0) & (number < groups), other=0).to(tl.int32)
    end = tl.minimum(end, rows.to(tl.int32))
    tiles = tl.maximum(end - start + ROWS - 1, 0) // ROWS
    last = tl.cumsum(tiles, 0)
    group = tl.sum((last <= tile).to(tl.int32), 0)
    first = start + (tile.to(tl.int32) - last + tiles) * ROWS
    found = number == group
    return group, tl.sum(tl.where(found, first, 0), 0), tl.sum(tl.where(found, end, 0), 0)


@triton.jit
def fetch(x, row, col, inside, strides):
    at = row.to(tl.int64) * strides[0] + col.to(tl.int64) * strides[1]
    return tl.load(x + at, mask=inside, other=0.0)


@triton.jit
def put(out, value, row, col, inside, strides):
    at = out + row.to(tl.int64) * strides[0]
    tl.store(at + col.to(tl.int64) * strides[1], value.to(out.dtype.element_ty), mask=inside)
'''

PRODUCT = """
@triton.jit(do_not_specialize=["rows", "groups", "fan", "tiles"])
def {name}(
    {pointers},
    {strides},
    ends_ptr, order_ptr, fan, rows, groups, width, depth, tiles,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEEP: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(width, COLS)
    # Eight tiles of rows in turn for one tile of columns, so that both stay in the cache.
    top = pid // (8 * across) * 8
    high = tl.minimum(tiles - top, 8)
    tile = top + pid % (8 * across) % high
    side = pid % (8 * across) // high
    group, first, stop = group_at(tile, ends_ptr, groups, rows, E, ROWS)
    if stop == 0:
        return
    row = (first + tl.arange(0, ROWS))[:, None]
    col = (side * COLS + tl.arange(0, COLS))[None, :]
    inside = (row < stop) & (col < width)
    pair = row
    if order_ptr is not None:
        pair = tl.load(order_ptr + row, mask=row < stop, other=0)
    token = pair // fan
    lane = tl.arange(0, COLS)[None, :]
    deep = tl.arange(0, DEEP)
{places}
{sums}
    for k in range(0, depth, DEEP):
{steps}
{tail}
"""

OUTER = '''
@triton.jit(do_not_specialize=["fan", "rows"])
def ragged(
    out_ptr, y_ptr, x_ptr, total_ptr, scale_ptr, out_at, y_at, x_at, total_at,
    ends_ptr, order_ptr, fan, rows, height, width,
    Y_SHARED: tl.constexpr,
    X_SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """out[e] = y[rows of e].T @ x[rows of e], and the sums of the rows of scale * y: zero for an empty group."""
    pid = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(width, COLS)
    each = tl.cdiv(height, ROWS) * across
    group = pid // each
    side = pid % across
    start = tl.load(ends_ptr + group - 1, mask=group > 0, other=0)
    stop = tl.minimum(tl.load(ends_ptr + group, mask=group >= 0, other=0), rows)
    row = (pid % each // across * ROWS + tl.arange(0, ROWS))[:, None]
    col = (side * COLS + tl.arange(0, COLS))[None, :]
    product = tl.zeros((ROWS, COLS), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for k in range(start.to(tl.int32), stop.to(tl.int32), DEEP):
        deep = k + tl.arange(0, DEEP)
        pair = deep
        if order_ptr is not None:
            pair = tl.load(order_ptr + deep, mask=deep < stop, other=0)
        token = pair // fan
        y_row = token if Y_SHARED else deep
        x_row = token if X_SHARED else deep
        y = fetch(y_ptr, y_row[None, :], row, (deep < stop)[None, :] & (row < height), y_at)
        x = fetch(x_ptr, x_row[:, None], col, (deep < stop)[:, None] & (col < width), x_at)
        product = tl.dot(y, x, product, input_precision="ieee")
        if total_ptr is not None:
            each_y = y.to(tl.float32)
            if scale_ptr is not None:
                each_y *= tl.load(scale_ptr + pair, mask=deep < stop, other=0.0).to(tl.float32)[None, :]
            total += tl.sum(each_y, 1)
    put(out_ptr + group * out_at[0], product, row, col, (row < height) & (col < width), (out_at[1], out_at[2]))
    if total_ptr is not None:
        zero = tl.zeros((1, 1), tl.int32)
        put(total_ptr + group * total_at[0], total[:, None], zero, row, (row < height) & (zero + side == 0), (0, total_at[1]))
'''

SORT = '''
@triton.jit(do_not_specialize=["pairs"])
def sort(order_ptr, ends_ptr, counts_ptr, chosen_ptr, pairs, groups, BLOCK: tl.constexpr):
    """One group for each program: how many pairs stand before it and in it, then where each of its own goes."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    own = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, pairs, BLOCK):
        choice = tl.load(chosen_ptr + at + lane, mask=at + lane < pairs, other=groups)
        before += (choice < group).to(tl.int32)
        own += (choice == group).to(tl.int32)
    start = tl.sum(before, 0)
    count = tl.sum(own, 0)
    tl.store(counts_ptr + group, count.to(counts_ptr.dtype.element_ty), mask=group >= 0)
    tl.store(ends_ptr + group, (start + count).to(ends_ptr.dtype.element_ty), mask=group >= 0)
    for at in range(0, pairs, BLOCK):
        choice = tl.load(chosen_ptr + at + lane, mask=at + lane < pairs, other=groups)
        found = (choice == group).to(tl.int32)
        place = start + tl.cumsum(found, 0) - 1
        tl.store(order_ptr + place, (at + lane).to(order_ptr.dtype.element_ty), mask=found > 0)
        start += tl.sum(found, 0)
'''

SORTED = '''
def sorted_pairs(chosen, groups):
    """Pairs by choice, in their order among equals: their numbers, the end of each choice, and how many there are."""
    pairs, device = chosen.numel(), chosen.device
    order = torch.empty(pairs, dtype=torch.int64, device=device)
    ends, counts = (torch.empty(groups, dtype=torch.int32, device=device) for _ in range(2))
    with torch.cuda.device_of(chosen):
        sort[(groups,)](
            order, ends, counts, chosen.contiguous(), pairs, groups, BLOCK=1024, num_warps=4, enable_fp_fusion=True
        )
    return order, ends, counts
'''

# Rows, columns, warps and stages of a tile of two-byte numbers; full float32 is not for tensor cores and takes fine ones.
TILES = {"128x128": (128, 128, 8, 3), "64x128": (64, 128, 4, 3), "64x64": (64, 64, 4, 3), "16x128": (16, 128, 4, 4)}
FINE = ("64x64", "16x128")

LAUNCH = '''
CONFIGS = TILES
NARROW = 64


def config_for(x, rows, groups):
    """By the rows that a group has on average; full float32 is not for tensor cores, which take smaller tiles."""
    if x.dtype == torch.float32:
        return "64x64" if rows > 16 * groups else "16x128"
    return "128x128" if rows > 64 * groups else "64x128" if rows > 16 * groups else "16x128"


def sizes(config, x):
    rows, cols, warps, stages = CONFIGS[config]
    deep = 128 // x.element_size()
    if x.dtype == torch.float32:  # two of its products in one loop spill in deeper tiles with triton 3.6
        warps, stages, deep = 8, 2, 16
    return (
        {"ROWS": rows, "COLS": cols, "DEEP": deep},
        {"num_warps": warps, "num_stages": 2 if torch.version.hip else stages},
    )


def lighten(tile, options):
    """Sixteen elements for each thread: many values of a tile are alive at once behind this product."""
    threads = 64 if torch.version.hip else 32
    tile["ROWS"], tile["COLS"] = min(tile["ROWS"], NARROW), NARROW
    options["num_warps"] = max(4, tile["ROWS"] * tile["COLS"] // (16 * threads))


def launch(kernel, config, tensors, ends, order, fan, rows, width, depth, products=1, heavy=False):
    """Tiles of rows of one group each: as many as there can be, whatever the groups are. Products share the columns."""
    groups = ends.shape[0]
    tile, options = sizes(config, tensors[-1])
    tile["COLS"] //= triton.next_power_of_2(products)
    if heavy:
        lighten(tile, options)
    tiles = rows // tile["ROWS"] + min(groups, rows)
    grid = (tiles * triton.cdiv(width, tile["COLS"]),)
    with torch.cuda.device_of(ends):
        kernel[grid](
            *tensors, *map(strides_of, tensors), ends, order, fan, rows, groups, width, depth, tiles,
            E=triton.next_power_of_2(groups), **tile, **options, enable_fp_fusion=True,
        )


def strides_of(x):
    return (0, 0) if x is None else (*x.stride(), 0) if x.dim() == 1 else x.stride()


def outer(y, x, ends, order=None, fan=1, shared="", scale=None, out=None, total=False, config=None):
    """The gradient of a weight, and the sums of scale * y beside it if asked; `shared` names what `order` reads."""
    rows = y.shape[0] if order is None else order.shape[0]
    groups, height, width = ends.shape[0], y.shape[1], x.shape[1]
    if out is None:
        out = torch.empty((groups, height, width), dtype=x.dtype, device=x.device)
    sums = torch.empty((groups, height), dtype=torch.float32, device=x.device) if total else None
    tile, options = sizes(config or config_for(x, rows, groups).replace("16x128", "64x64"), x)
    grid = (groups * triton.cdiv(height, tile["ROWS"]) * triton.cdiv(width, tile["COLS"]),)
    if not out.numel():
        return out, sums
    with torch.cuda.device_of(ends):
        ragged[grid](
            out, y, x, sums, scale, *map(strides_of, (out, y, x, sums)), ends, order, fan, rows, height, width,
            Y_SHARED="y" in shared, X_SHARED="x" in shared, **tile, **options, enable_fp_fusion=True,
        )
    return out, sums
'''.replace("CONFIGS = TILES", f"CONFIGS = {TILES}")


@dataclass(frozen=True)
class Term:
    """total += rows @ weight[group].T; `shared` rows are read at their token."""

    total: str
    rows: str
    weight: str
    shared: bool = False


def product(
    name: str, terms: Sequence[Term], tensors: Sequence[str], tail: Sequence[str], extra: Sequence[str] = ()
) -> str:
    """A grouped product with this text behind it; `extra` lines stand in the loop over its depth."""
    before, steps, ahead = dict[str, str](), list[str](), list[str]()
    for term in terms:
        rows, weight = term.rows, term.weight
        if rows not in before:
            before[rows] = f"{rows}_ptr + {'token' if term.shared else 'row'}.to(tl.int64) * {rows}_at[0]"
            mask = "(row < stop) & (deep < depth - k)[None, :]"
            steps.append(f"{rows} = tl.load({rows}_here + deep[None, :] * {rows}_at[1], mask={mask}, other=0.0)")
            ahead.append(f"{rows}_here += DEEP * {rows}_at[1]")
        before[weight] = f"{weight}_ptr + group.to(tl.int64) * {weight}_at[0] + side * COLS * {weight}_at[1]"
        mask, at = "(deep < depth - k)[:, None] & (col < width)", f"{weight}_at"
        where = f"{weight}_here + lane * {at}[1] + deep[:, None] * {at}[2]"
        steps.append(f"{weight} = tl.load({where}, mask={mask}, other=0.0)")
        steps.append(f'{term.total} = tl.dot({rows}, {weight}, {term.total}, input_precision="ieee")')
        ahead.append(f"{weight}_here += DEEP * {at}[2]")
    totals = dict.fromkeys(t.total for t in terms)
    return PRODUCT.format(
        name=name,
        pointers=", ".join(f"{t}_ptr" for t in tensors),
        strides=", ".join(f"{t}_at" for t in tensors),
        sums="\n".join(f"    {t} = tl.zeros((ROWS, COLS), tl.float32)" for t in totals),
        places="\n".join(f"    {x}_here = {place}" for x, place in before.items()),
        steps="\n".join(f"        {line}" for line in (*steps, *extra, *ahead)),
        tail="\n".join(f"    {line}" for line in tail),
    )


def biased(total: str, bias: str) -> str:
    """Add a group's bias to every row of it."""
    zero, mask = "tl.zeros((1, 1), tl.int32)", "col < width"
    where = f"{bias}_ptr + group.to(tl.int64) * {bias}_at[0]"
    return f"{total} += fetch({where}, {zero}, col, {mask}, (0, {bias}_at[1])).to(tl.float32)"
