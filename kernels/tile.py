"""The tile: how a generated kernel finds the elements of operands that have any strides at all.

The dimensions of all operands are merged wherever every one of them allows it. The last merged
dimension is a tile's columns; the others, together, are its rows. An operand that broadcasts along
a dimension has a stride of None there, which costs it neither arithmetic nor loads.
"""

TILE = '''
@triton.jit
def place(row, col, rows, shape, strides):
    """The offsets of a tile in one operand, and which of them exist."""
    at = tl.zeros((1, 1), tl.int64)
    inside = tl.full((1, 1), True, tl.int1)
    left = row
    for d in tl.static_range(len(shape) - 1, 0, -1):
        if strides[d] is not None:
            at += left % shape[d - 1] * strides[d]
            inside &= row < rows
        left = left // shape[d - 1]
    if strides[0] is not None:
        at += left * strides[0]
        inside &= row < rows
    if strides[len(shape)] is not None:
        at += col.to(tl.int64) * strides[len(shape)]
        inside &= col < shape[len(shape) - 1]
    return at, inside


@triton.jit
def read(x, row, col, rows, shape, strides):
    at, inside = place(row, col, rows, shape, strides)
    return tl.load(x + at, mask=inside, other=0)


@triton.jit
def write(out, value, row, col, rows, shape, strides):
    at, inside = place(row, col, rows, shape, strides)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
'''

CHECKS = '''
broadcast = functools.lru_cache(maxsize=4096)(torch.broadcast_shapes)


def expect(operands, dtypes):
    found = tuple(x.dtype for x in operands)
    if found != dtypes:
        raise TypeError(f"this kernel was generated for {dtypes}, not for {found}")


def room(operands, shape, dtype):
    """Memory for a result of this shape, laid out like the first operand that has it."""
    like = next((x for x in operands if x.shape == shape), None)
    if like is None:
        return torch.empty(shape, dtype=dtype, device=operands[0].device)
    return torch.empty_like(like, dtype=dtype)
'''

MERGE = '''
@functools.lru_cache(maxsize=4096)
def merged(shape, kept, *operands):
    """Rows, the sizes of all dimensions but the first, and the strides of each operand; the last `kept` stay as they are."""
    aligned = [align(shape, *operand) if operand else (0,) * len(shape) for operand in operands]
    lead = next(strides for strides, operand in zip(aligned, operands) if operand)
    dims = []
    free = len(shape) - kept
    for d in sorted((d for d, n in enumerate(shape[:free]) if n != 1), key=lambda d: -lead[d]):
        now = [strides[d] for strides in aligned]
        if dims and all(a == b * shape[d] for a, b in zip(dims[-1][1], now)):
            dims[-1] = dims[-1][0] * shape[d], now
        else:
            dims.append((shape[d], now))
    dims += [(shape[d], [strides[d] for strides in aligned]) for d in range(free, len(shape))]
    dims = [(1, [0] * len(operands))] * (2 - len(dims)) + dims
    sizes = tuple(n for n, _ in dims)
    strides = tuple(tuple(now[i] or None for _, now in dims) for i in range(len(operands)))
    return math.prod(sizes[:-1]), sizes[1:], strides


def align(shape, size, stride):
    """The strides of an operand against the full shape: zero wherever it broadcasts."""
    new = len(shape) - len(size)
    return (0,) * new + tuple(0 if n == 1 else s for n, s in zip(size, stride))
'''

LAUNCH = """
def launch(kernel, outs, ins):
    operands = *outs, *ins
    first = next(out for out in outs if out is not None)
    known = ((x.shape, x.stride()) if x is not None else None for x in operands)
    rows, shape, strides = merged(first.shape, 0, *known)
    # 8 elements for each of 128 threads, whose warps are 32 or 64 wide: one 128-bit load of a two-byte type.
    COLS = min(1024, triton.next_power_of_2(shape[-1]))
    ROWS = 1024 // COLS
    across = triton.cdiv(shape[-1], COLS)
    grid = (triton.cdiv(rows, ROWS) * across,)
    with torch.cuda.device_of(first):
        kernel[grid](
            *operands, *strides, rows, across, shape,
            ROWS=ROWS, COLS=COLS, num_warps=2 if torch.version.hip else 4, enable_fp_fusion=True,
        )
"""

REDUCE = '''
def room_for_gradient(x, shape):
    """A broadcast operand's gradient is summed later, so it is not rounded yet."""
    return room((x,), shape, x.dtype if x.shape == shape else WIDE)


def reduced(grad, x):
    if grad is None or grad.shape == x.shape:
        return grad
    return grad.sum_to_size(x.shape).to(x.dtype)
'''
