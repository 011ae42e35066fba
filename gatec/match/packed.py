"""Linear layers, views, and the parts of packed projections.

A view that keeps the last dimension is no operation of its own, so the sizes that a term remembers need not be those
that an operation sees: `seen` are the sizes of the operand at hand, and dimensions are counted from the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gatec.match.algebra import Shape, mul, unary
from gatec.match.terms import Linear, Rows, Table, Term

# -- linear layers --------------------------------------------------------------------------------------------------


def linear(table: Table, x: Any, weight: Any, bias: Any, transposed: bool, shape: Shape) -> Term | None:
    found = _weight(weight, transposed) if isinstance(x, Term) and isinstance(weight, Term) else None
    if found is None:
        return None
    stored, transposed, rows = found
    assert stored.shape is not None
    fan, width = stored.shape if transposed else stored.shape[::-1]
    rows = rows or (0, width, 1)
    name = _bias(bias, rows, width)
    if bias is not None and name is None:
        return None
    data = Linear(stored.data.rpartition(".")[0], stored.data, name, transposed, width, rows, fan)
    return table.make("linear", x, data=data, shape=shape)


def _weight(w: Term, transposed: bool) -> tuple[Term, bool, Rows | None] | None:
    """The stored matrix behind a weight, whether its outputs are columns, and which of them are used."""
    rows: Rows | None = None
    while w.op in ("transpose", "part", "view"):
        if w.op == "view":  # a matrix of one row, turned
            if not w.shape or w.args[0].shape != w.shape[::-1] or 1 not in w.shape:
                return None
            transposed = not transposed
        elif w.op == "part":
            if rows is not None or w.data[0] != (-1 if transposed else -2):
                return None
            rows = w.data[1]
        else:
            transposed = not transposed
        w = w.args[0]
    return (w, transposed, rows) if w.op == "param" and w.shape is not None and len(w.shape) == 2 else None


def _bias(bias: Any, rows: Rows, width: int) -> str | None:
    if isinstance(bias, Term) and bias.op == "part" and bias.data == (-1, rows):
        bias = bias.args[0]
    elif rows != (0, width, 1):
        return None
    return bias.data if isinstance(bias, Term) and bias.op == "param" and bias.shape == (width,) else None


def matmul(table: Table, x: Any, w: Any, shape: Shape = None, alpha: float = 1) -> Term | None:
    return linear(table, x, w, None, True, shape)


def einsum(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    """`...i,oi->...o`: a linear layer by the names of its dimensions."""
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple) else operands
    inputs, _, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if len(operands) != 2 or len(names) != 2 or not output:
        return None
    if output in names and "." not in output:
        return _by_names(table, operands, names, output, shape)
    for (x, w), (nx, nw) in ((operands, names), (operands[::-1], names[::-1])):
        shared = nx[-1:]
        if len(nw) == 2 and shared in nw and nx.count(shared) == 1 and isinstance(w, Term):
            other = nw.replace(shared, "")
            if len(other) == 1 and other not in nx and output == nx[:-1] + other:
                found = linear(table, x, w, None, nw[0] == shared, shape)
                if found is not None:
                    return found
    return None


def _by_names(table: Table, operands: list[Any], names: list[str], output: str, shape: Shape) -> Term | None:
    """`bf,bfd->bfd`: a product whose factors are repeated along the dimensions that they do not name."""
    if shape is None or len(set(output)) < len(output) or not all(isinstance(x, Term) for x in operands):
        return None
    sizes = [tuple(s if c in n else 1 for c, s in zip(output, shape, strict=True)) for n in names]
    if any([c for c in output if c in n] != list(n) for n in names):
        return None
    a, b = (exposed(table, x, seen) for x, seen in zip(operands, sizes, strict=True))
    return mul(table, a, b, shape)


# -- views ----------------------------------------------------------------------------------------------------------


def view(table: Table, x: Term, shape: Shape) -> Term:
    """A reshape that keeps the last dimension is no operation of its own."""
    if x.op == "const" or x.shape is None or shape is None or _same_rows(x, shape):
        return x
    if x.op == "view":
        x = x.args[0]
        if _same_rows(x, shape):
            return x
    return table.make("view", x, data=shape, shape=shape)


def _same_rows(x: Term, shape: Shape) -> bool:
    return bool(x.shape == shape or (x.shape and shape and x.shape[-1] == shape[-1]))


def exposed(table: Table, x: Term, seen: Shape) -> Term:
    """The operand of something that looks at other dimensions than the last: with the sizes that it really has."""
    if seen is None or x.shape == seen or x.op == "const":
        return x
    return table.make("view", x, data=seen, shape=seen)


def _split_rows(x: Term, seen: Shape) -> Term | None:
    """What was viewed, where a view only split its last dimension in two."""
    base = x.args[0] if x.op == "view" else x
    if not base.shape or not seen or len(seen) < 2 or not all(isinstance(s, int) for s in (*seen[-2:], base.shape[-1])):
        return None
    return base if seen[-2] * seen[-1] == base.shape[-1] else None


def permute(table: Table, x: Term, seen: Shape, perm: tuple[int, ...]) -> Term | None:
    if seen is None or len(perm) != len(seen):
        return None
    perm = tuple(p % len(seen) for p in perm)
    shape, moved = tuple(seen[p] for p in perm), [p for p in perm if seen[p] != 1]
    if moved == sorted(moved):
        return view(table, x, shape)
    if len(moved) == 2:
        sizes = (seen[moved[1]], seen[moved[0]])
        matrix = _matrix(table, x, sizes)
        turned = matrix.args[0] if matrix.op == "transpose" else table.make("transpose", matrix, shape=sizes[::-1])
        return view(table, turned, shape)
    if x.op == "permute" and x.shape == seen:
        return permute(table, x.args[0], x.args[0].shape, tuple(x.data[p] for p in perm))
    return table.make("permute", exposed(table, x, seen), data=perm, shape=shape)


def _matrix(table: Table, x: Term, sizes: tuple[int, ...]) -> Term:
    """A term with these sizes, behind views that only add and remove dimensions of size one."""
    while x.op == "view" and x.shape != sizes and _without_ones(x.args[0].shape) == sizes:
        x = x.args[0]
    return exposed(table, x, sizes)


def _without_ones(shape: Shape) -> tuple[int, ...]:
    return tuple(s for s in shape or () if s != 1)


def transposed(table: Table, x: Term, seen: Shape, a: int, b: int) -> Term | None:
    perm = list(range(len(seen or ())))
    perm[a], perm[b] = perm[b], perm[a]
    return permute(table, x, seen, tuple(perm))


# -- parts ----------------------------------------------------------------------------------------------------------


def part(table: Table, x: Term, seen: Shape, dim: int, rows: Rows) -> Term:
    """`x[..., start:stop:step]` along `dim`; of a linear layer, the layer with those outputs only."""
    if seen is None or x.op == "const":
        return x if x.op == "const" else table.make("part", x, data=(dim, rows))
    dim = dim - len(seen) if dim >= 0 else dim
    own = range(*rows)
    rows = (
        (own.start, own.start + len(own) * own.step, own.step) if len(own) > 1 else (own.start, own.start + len(own), 1)
    )
    if rows == (0, seen[dim], 1):
        return x
    shape = (*seen[:dim], len(own), *seen[len(seen) + dim + 1 :])
    base = _split_rows(x, seen) if (dim == -2 and rows[2] == 1) or (dim == -1 and len(own) == 1) else None
    if base is not None and x.op == "view" and base.shape is not None:
        width, last = seen[-2] * seen[-1], seen[-1]
        inner = (rows[0] * last, rows[1] * last, 1) if dim == -2 else (rows[0], width, last)
        return view(table, part(table, base, base.shape, -1, inner), shape)
    if dim != -1:
        return table.make("part", exposed(table, x, seen), data=(dim, rows), shape=shape)
    if x.op == "linear":
        chosen = range(*x.data.rows)[slice(*rows)]
        return table.make(
            "linear", *x.args, data=replace(x.data, rows=(chosen.start, chosen.stop, chosen.step)), shape=shape
        )
    if x.op == "part" and x.data[0] == -1:
        chosen = range(*x.data[1])[slice(*rows)]
        return part(table, x.args[0], x.args[0].shape, -1, (chosen.start, chosen.stop, chosen.step))
    return table.make("part", x, data=(-1, rows), shape=shape)


def select(table: Table, x: Term, seen: Shape, dim: int, index: int) -> Term | None:
    """`x[..., index]` along `dim`: a part of one, without its dimension."""
    if not seen:
        return None
    dim, index = dim % len(seen), index % seen[dim]
    return view(table, part(table, x, seen, dim, (index, index + 1, 1)), (*seen[:dim], *seen[dim + 1 :]))


def pieces(table: Table, x: Term, seen: Shape, dim: int, sizes: list[int]) -> Term | None:
    if not seen or sum(sizes) != seen[dim]:
        return None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return table.make("tuple", *(part(table, x, seen, dim, (a, a + s, 1)) for a, s in zip(starts, sizes, strict=True)))


def glu(table: Table, x: Term, seen: Shape, dim: int, shape: Shape) -> Term | None:
    halves = pieces(table, x, seen, dim, [seen[dim] // 2] * 2) if seen else None
    return mul(table, halves.args[0], unary(table, "sigmoid", halves.args[1]), shape) if halves is not None else None


# -- torch's ways to ask for parts: of (table, x, its sizes, further arguments, sizes of the result) -----------------


def _chunk(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    dim = a.get("dim", 0)
    size = -(-seen[dim] // a["chunks"]) if seen else 0
    return _split(table, x, seen, {"size": size, "dim": dim}, shape)


def _split(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    sizes, dim = a["size"], a.get("dim", 0)
    if isinstance(sizes, int):
        width = seen[dim] if seen else 0
        sizes = [min(sizes, width - start) for start in range(0, width, sizes)]
    return pieces(table, x, seen, dim, list(sizes))


def _tensor_split(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    n, dim = a["n"], a.get("dim", 0)
    width = seen[dim] if seen else 0
    if isinstance(n, int):
        return pieces(table, x, seen, dim, [width // n + (i < width % n) for i in range(n)])
    edges = [0, *n, width]
    return pieces(table, x, seen, dim, [b - a for a, b in itertools.pairwise(edges)])


def _unbind(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    dim = a.get("dim", 0)
    found = [select(table, x, seen, dim, i) for i in range(seen[dim])] if seen else []
    return table.make("tuple", *(f for f in found if f is not None)) if found else None


def _narrow(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    start = a["start"] % seen[a["dim"]] if seen else a["start"]
    return part(table, x, seen, a["dim"], (start, start + a["length"], 1))


def _slice(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    dim = a.get("dim", 0)
    rows = slice(a.get("start"), a.get("end"), a.get("step", 1)).indices(seen[dim]) if seen else None
    return part(table, x, seen, dim, rows) if rows is not None else None


def _getitem(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    index = a["index"]
    if x.op == "tuple":
        if isinstance(index, slice):
            return table.make("tuple", *x.args[index])
        return x.args[index] if isinstance(index, int) else None
    if seen is None:
        return table.make("item", x, data=index if isinstance(index, (int, str)) else repr(index), shape=shape)
    return _indexed(table, x, list(seen), list(index) if isinstance(index, tuple) else [index], shape)


def _indexed(table: Table, x: Term, seen: list[int], index: list[Any], shape: Shape) -> Term | None:
    if not all(i is None or i is Ellipsis or type(i) is int or isinstance(i, slice) for i in index):
        return None
    asked = [i for i in index if i is not None]
    at = asked.index(Ellipsis) if Ellipsis in asked else len(asked)
    asked[at : at + 1] = [slice(None)] * (len(seen) - len(asked) + (at < len(asked)))
    if len(asked) != len(seen):
        return None
    for dim in reversed(range(len(seen))):
        i = asked[dim]
        rows = (i % seen[dim], i % seen[dim] + 1, 1) if isinstance(i, int) else i.indices(seen[dim])
        x = part(table, x, tuple(seen), dim, rows)
        seen[dim] = len(range(*rows))
    return view(table, x, shape)


def _select(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    return select(table, x, seen, a["dim"], a["index"])


def _permute(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    perm = a["dims"] if isinstance(a["dims"], tuple) else (a["dims"], *a.get("rest", ()))
    return permute(table, x, seen, perm)


def _transpose(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    return transposed(table, x, seen, a["dim0"], a["dim1"])


def _t(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    return transposed(table, x, seen, -2, -1) if seen and len(seen) == 2 else None


def _mt(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    return transposed(table, x, seen, -2, -1) if seen and len(seen) > 1 else None


def _repeat(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    """Repeating what has size one is broadcasting; anything else is an operation."""
    if not seen or not shape:
        return None
    old = (1,) * (len(shape) - len(seen)) + seen
    if all(o in (1, n) for o, n in zip(old, shape, strict=True)):
        return view(table, x, shape)
    return table.make("repeat", exposed(table, x, seen), data=shape, shape=shape)


def _glu(table: Table, x: Term, seen: Shape, a: dict[str, Any], shape: Shape) -> Term | None:
    return glu(table, x, seen, a.get("dim", -1), shape)


Packed = Callable[[Table, Term, Shape, dict[str, Any], Shape], Term | None]
SPLIT, SWAP = ("size", "dim"), ("dim0", "dim1")
PACKED: dict[str, tuple[Packed, tuple[str, ...]]] = {  # function, names of its further arguments
    "chunk": (_chunk, ("chunks", "dim")), "unsafe_chunk": (_chunk, ("chunks", "dim")), "split": (_split, SPLIT),
    "split_with_sizes": (_split, SPLIT), "unsafe_split": (_split, SPLIT), "tensor_split": (_tensor_split, ("n", "dim")),
    "unbind": (_unbind, ("dim",)), "narrow": (_narrow, ("dim", "start", "length")),
    "slice": (_slice, ("dim", "start", "end", "step")), "getitem": (_getitem, ("index",)),
    "select": (_select, ("dim", "index")), "permute": (_permute, ("dims",)), "transpose": (_transpose, SWAP),
    "swapaxes": (_transpose, SWAP), "swapdims": (_transpose, SWAP), "t": (_t, ()), "mT": (_mt, ()), "numpy_T": (_t, ()),
    "repeat": (_repeat, ()), "glu": (_glu, ("dim",)),
}  # fmt: skip
ALSO = {
    **dict.fromkeys(("split_size_or_sections", "split_size", "split_sizes"), "size"),
    **dict.fromkeys(("sections", "indices", "indices_or_sections", "tensor_indices_or_sections"), "n"),
    "axis0": "dim0",
    "axis1": "dim1",
    "axis": "dim",
}


def packed(
    table: Table, name: str, x: Term, seen: Shape, args: list[Any], kwargs: dict[str, Any], shape: Shape
) -> Term | None:
    function, names = PACKED[name]
    if name == "permute" and args and isinstance(args[0], int):
        args = [tuple(args)]
    given = dict(zip(names, args, strict=False)) | {ALSO.get(k, k): v for k, v in kwargs.items()}
    if any(isinstance(v, Term) for v in given.values()):
        return None
    return function(table, x, seen, given, shape)
