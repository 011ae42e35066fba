"""The launchers of a recurrence over matrices, without a delta rule and with one."""

PLAIN = '''
def walked(last, x, y, decay, first, sizes, down):
    """The state in front of every chunk, in the order of the walk; `last` gets the one behind them all."""
    steps, keys, values, _, inner = sizes
    heads = x.shape[0] * inner
    states = torch.empty((heads, triton.cdiv(steps, CHUNK), keys, values), dtype=torch.float32, device=x.device)
    if states.numel() or last is not None:
        grid = heads, tiles_of(keys), tiles_of(values)
        launch(walk, grid, (states, last), (x, y, decay, first), (x, y, decay, first), sizes, 4, DOWN=down)
    return states


def forward({operands}):
    """What is read at every step, and the last state."""
    expect(({operands},), DTYPES)
    out = torch.empty(v.shape, dtype=OUT, device=v.device)
    last = torch.empty((*v.shape[:-2], k.shape[-1], v.shape[-1]), dtype=torch.float32, device=v.device)
    if last.numel():
        x, y, z, decays, first = (None if x is None else heads_of(x) for x in (q, k, v, {decay}, {state}))
        sizes = sizes_of(x, z, decays)
        states = walked(last, y, z, decays, first, sizes, False)
        read_chunks(out, states, (x, y, z, decays), sizes, False)
    return out, last


def read_chunks(out, states, ins, sizes, back):
    if out.numel():
        launch(read_states, (*states.shape[:2], tiles_of(sizes[2])), (out,), (states, *ins), ins, sizes, 4, BACK=back)


def backward(grad, last_grad, {operands}, needs=(True,) * {count}):
    """The gradient of each operand that needs one; the states are computed again."""
    expect(({operands},), DTYPES)
    wanted = dict(zip("{operands}".split(", "), needs))
    slope, ends, *ins = (None if x is None else heads_of(x) for x in (grad, last_grad, q, k, v, {decay}, {state}))
    ins, first = ins[:4], ins[4]
    sizes = sizes_of(ins[0], ins[2], ins[3])
    found = {{n: torch.empty_like(x, memory_format=torch.contiguous_format) for n, x in zip(wanted, ({operands},))}}
    found = {{n: x if wanted[n] else None for n, x in found.items()}}
    if not last_grad.numel():
        return tuple(found.values())
    down = walked(found.get("state"), ins[0], slope, ins[3], ends, sizes, True)
    if found["v"] is not None:
        read_chunks(found["v"], down, (*ins[:2], slope, ins[3]), sizes, True)
    parts = room_for_sums({decay}, 1 if {keyed} else tiles_of(sizes[1])) if wanted.get("decay") else None
    outs = found["q"], found["k"], parts
    if grad.numel() and any(x is not None for x in outs):
        states = walked(None, ins[1], ins[2], ins[3], first, sizes, False)
        grid = *states.shape[:2], tiles_of(sizes[1])
        launch(pull, grid, outs, (slope, states, down, *ins), (slope, *ins), sizes, 4)
    if parts is not None:
        found["decay"] = parts.sum(0).to(found["decay"].dtype) if len(parts) > 1 else parts[0]
    return tuple(found.values())
'''

DELTA = '''
def walked(last, x, y, decay, first, reader, leaves, sizes, down):
    """The state in front of every chunk, in the order of the walk, and minus what each step erases along `leaves`."""
    steps, keys, values, _, inner = sizes
    heads, chunks = x.shape[0] * inner, triton.cdiv(steps, CHUNK)
    states, undo, seen = (rows(x, heads, *s) for s in ((chunks, keys, values), (steps, values), (steps, values)))
    owed, put, gone = (rows(x, heads, steps, keys) for _ in range(3))
    passed = None if decay is None else rows(x, heads, chunks, decay.shape[3])
    if states.numel():
        ins = reader, leaves, x, y, decay
        launch(solve, (heads, chunks), (owed, seen, put, gone, passed), ins, ins, sizes, 4, DOWN=down)
    if states.numel() or last is not None:
        ins, grid = (y, first, put, gone, owed, seen, passed), (heads, tiles_of(values))
        every, warps = max(16, triton.next_power_of_2(keys)), 4 if torch.version.hip else 8
        launch(walk, grid, (states, last, undo), ins, (y, first), sizes, warps, keys=every, DOWN=down)
    return states, undo


def rows(like, *shape):
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def forward({operands}):
    """What is read at every step, and the last state."""
    expect(({operands},), DTYPES)
    out = torch.empty(v.shape, dtype=OUT, device=v.device)
    last = torch.empty((*v.shape[:-2], k.shape[-1], v.shape[-1]), dtype=torch.float32, device=v.device)
    if last.numel():
        given = q, k, v, {decay}, erase, write, {state}
        x, y, z, decays, reader, leaves, first = (None if x is None else heads_of(x) for x in given)
        sizes = sizes_of(x, z, decays)
        states, undo = walked(last, y, z, decays, first, reader, leaves, sizes, False)
        read_chunks(out, states, undo, (x, y, z, decays, leaves), sizes, False)
    return out, last


def read_chunks(out, states, undo, ins, sizes, back):
    if out.numel():
        grid = *states.shape[:2], tiles_of(sizes[2])
        launch(read_states, grid, (out,), (states, *ins, undo), ins, sizes, 4, BACK=back)


def backward(grad, last_grad, {operands}, needs=(True,) * {count}):
    """The gradient of each operand that needs one; the states, and what was erased, are computed again."""
    expect(({operands},), DTYPES)
    wanted = dict(zip("{operands}".split(", "), needs))
    given = grad, last_grad, q, k, v, {decay}, erase, write, {state}
    slope, ends, x, y, z, decays, reader, leaves, first = (None if x is None else heads_of(x) for x in given)
    sizes = sizes_of(x, z, decays)
    found = {{n: torch.empty_like(x, memory_format=torch.contiguous_format) for n, x in zip(wanted, ({operands},))}}
    found = {{n: x if wanted[n] else None for n, x in found.items()}}
    if not last_grad.numel():
        return tuple(found.values())
    # What the state's gradient loses at a step was read along `write`, and leaves along `erase`.
    down, undo_back = walked(found.get("state"), x, slope, decays, ends, leaves, reader, sizes, True)
    if found["v"] is not None:
        read_chunks(found["v"], down, undo_back, (x, y, slope, decays, reader), sizes, True)
    parts = room_for_sums({decay}, 1 if {keyed} else tiles_of(sizes[1])) if wanted.get("decay") else None
    outs = found["q"], found["k"], found["erase"], found["write"], parts
    if grad.numel() and any(x is not None for x in outs):
        states, undo = walked(None, y, z, decays, first, reader, leaves, sizes, False)
        grid, ins = (*states.shape[:2], tiles_of(sizes[1])), (x, y, z, decays, reader, leaves)
        launch(pull, grid, outs, (slope, states, down, *ins, undo, undo_back), (slope, *ins), sizes, 4, keys=32, values=16)
    if parts is not None:
        found["decay"] = parts.sum(0).to(found["decay"].dtype) if len(parts) > 1 else parts[0]
    return tuple(found.values())
'''
