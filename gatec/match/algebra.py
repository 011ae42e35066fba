"""How terms are built so that equal computations become equal terms: flattening, folding, packed projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from gatec.match.terms import Linear, Table, Term

Shape = tuple[int, ...] | None
Operand = Term | int | float

# -- products and sums ----------------------------------------------------------------------------------------------
# "mul": args are the factors, data the number in front; "add": args are the summands, data the number beside them


def mul(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    number, factors = 1.0, []
    for x in (a, b):
        if isinstance(x, Term) and x.op == "mul":
            number, factors = number * x.data, factors + list(x.args)
        elif isinstance(x, Term) and x.op == "const" and isinstance(x.data, (int, float)):
            number = number * x.data
        elif isinstance(x, Term):
            factors.append(x)
        else:
            number = number * x
    return product(table, number, factors, shape or _broadcast(factors))


def product(table: Table, number: float, factors: list[Term], shape: Shape = None) -> Term:
    number, factors = _fold(table, number, factors)
    if not factors:
        return table.const(number)
    if len(factors) == 1 and number == 1:
        return factors[0]
    return table.make("mul", *_sorted(factors), data=_clean(number), shape=shape)


def add(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    number, terms = 0.0, []
    for x in (a, mul(table, b, alpha) if alpha != 1 else b):
        if isinstance(x, Term) and x.op == "add":
            number, terms = number + x.data, terms + list(x.args)
        elif isinstance(x, Term) and x.op == "const" and isinstance(x.data, (int, float)):
            number = number + x.data
        elif isinstance(x, Term):
            terms.append(x)
        else:
            number = number + x
    return total(table, number, terms, shape or _broadcast(terms))


def total(table: Table, number: float, terms: list[Term], shape: Shape = None) -> Term:
    if len(terms) == 1 and number == 0:
        return terms[0]
    biased = _biased(table, terms) if number == 0 else None
    if biased is not None:
        return biased
    known = _known_sum(table, number, terms)
    return known or table.make("add", *_sorted(terms), data=_clean(number), shape=shape)


def sub(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    return add(table, a, mul(table, b, -alpha, shape), shape)


def div(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    if not isinstance(b, Term):
        return mul(table, a, 1 / b if b else math.inf, shape)
    return mul(table, a, recip(table, b, shape), shape)


def recip(table: Table, x: Term, shape: Shape = None) -> Term:
    if x.op == "add" and x.data == 1 and len(x.args) == 1 and x.args[0].op == "exp":  # 1 / (1 + exp(-z))
        return unary(table, "sigmoid", mul(table, x.args[0].args[0], -1))
    if x.op == "sqrt":
        return unary(table, "rsqrt", x.args[0])
    return table.make("recip", x, shape=shape or x.shape)


def power(table: Table, x: Operand, n: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    if isinstance(x, Term) and isinstance(n, (int, float)):
        if n in (2, 3):
            return mul(table, x, mul(table, x, x if n == 3 else 1, shape), shape) if n == 3 else mul(table, x, x, shape)
        if n in (0.5, -0.5, -1):
            return {0.5: unary(table, "sqrt", x), -0.5: unary(table, "rsqrt", x), -1: recip(table, x)}[n]
    return None


def unary(table: Table, name: str, x: Term, data: Any = None) -> Term:
    if name == "exp" and x.op == "log":
        return x.args[0]
    return table.make(name, x, data=data, shape=x.shape)


def compare(name: str) -> Callable[..., Term]:
    def build(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
        left, right = (x if isinstance(x, Term) else table.const(float(x)) for x in (a, b))
        if name in ("lt", "le"):
            return table.make({"lt": "gt", "le": "ge"}[name], right, left, shape=shape)
        return table.make(name, left, right, shape=shape)

    return build


def maximum(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    x, n = (a, _number(b)) if isinstance(a, Term) else (b, _number(a))
    return clamp(table, x, n, None) if n is not None and isinstance(x, Term) else None


def minimum(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    x, n = (a, _number(b)) if isinstance(a, Term) else (b, _number(a))
    return clamp(table, x, None, n) if n is not None and isinstance(x, Term) else None


def clamp(table: Table, x: Term, low: Any, high: Any) -> Term | None:
    if isinstance(low, Term) or isinstance(high, Term):
        return None
    if x.op == "clamp":
        low = x.data[0] if low is None else low
        high = x.data[1] if high is None else high
        x = x.args[0]
    if x.op == "relu" and low is None:
        low, x = 0.0, x.args[0]
    if low == 0 and high is None:
        return unary(table, "relu", x)
    if low == 0 and high == 1 and x.op == "add" and x.data == 0.5 and len(x.args) == 1:
        inner = x.args[0]  # clamp(z / 6 + 1 / 2, 0, 1)
        if inner.op == "mul" and math.isclose(inner.data, 1 / 6, rel_tol=1e-6):
            return unary(table, "hardsigmoid", product(table, 1.0, list(inner.args)))
    bounds = (None if low is None else float(low), None if high is None else float(high))
    return table.make("clamp", x, data=bounds, shape=x.shape)


def where(table: Table, args: list[Any], shape: Shape) -> Term | None:
    test, yes, no = args
    zero = no == 0 or (isinstance(no, Term) and no.op in ("const", "zeros") and no.data in (0, None))
    if isinstance(test, Term) and isinstance(yes, Term) and zero:
        return mul(table, test, yes, shape)
    return None


def _number(x: Any) -> float | None:
    if isinstance(x, Term):
        return x.data if x.op == "const" and isinstance(x.data, (int, float)) else None
    return float(x)


def _sorted(terms: Iterable[Term]) -> list[Term]:
    return sorted(terms, key=lambda t: t.number)


def _clean(number: float) -> float:
    return round(number, 9)


def _broadcast(terms: list[Term]) -> Shape:
    shapes = [t.shape for t in terms if t.shape is not None]
    return max(shapes, key=lambda s: (len(s), s)) if shapes else None


# -- activations that are written out -------------------------------------------------------------------------------


def _fold(table: Table, number: float, factors: list[Term]) -> tuple[float, list[Term]]:
    """Replace the factors of a written-out activation by the activation itself, as often as there is one."""
    changed = True
    while changed:
        changed = False
        for factor in factors:
            rest = [f for f in factors if f is not factor] + [factor] * (sum(f is factor for f in factors) - 1)
            found = _activation(table, number, factor, rest)
            if found is not None:
                number, factors, changed = *found, True
                break
    return number, factors


def _activation(table: Table, number: float, f: Term, rest: list[Term]) -> tuple[float, list[Term]] | None:
    if f.op == "sigmoid":
        z, scale = _scaled(table, f.args[0])
        if _has(rest, z):
            return number, [*_without(rest, z), unary(table, *(("silu", z) if scale == 1 else ("swish", z, scale)))]
    if f.op == "hardsigmoid" and _has(rest, f.args[0]):
        return number, [*_without(rest, f.args[0]), unary(table, "hardswish", f.args[0])]
    if f.op == "clamp" and f.data == (0.0, 6.0) and f.args[0].op == "add" and f.args[0].data == 3 and len(f.args[0].args) == 1:
        z = f.args[0].args[0]
        if _has(rest, z):
            return number * 6, [*_without(rest, z), unary(table, "hardswish", z)]
        return number * 6, [*rest, unary(table, "hardsigmoid", z)]
    if f.op == "tanh" and f.args[0].op == "softplus" and _has(rest, f.args[0].args[0]):
        return number, [*_without(rest, f.args[0].args[0]), unary(table, "mish", f.args[0].args[0])]
    if f.op == "relu" and _has(rest, f):
        return number, [*_without(rest, f), unary(table, "relu2", f.args[0])]
    if f.op == "gt" and f.args[1].op == "const" and f.args[1].data == 0 and _has(rest, f.args[0]):
        return number, [*_without(rest, f.args[0]), unary(table, "relu", f.args[0])]
    if f.op == "add" and f.data == 1 and len(f.args) == 1:
        return _one_plus(table, number, f.args[0], rest)
    return None


def _one_plus(table: Table, number: float, inner: Term, rest: list[Term]) -> tuple[float, list[Term]] | None:
    """x (1 + erf(x / sqrt 2)) is 2 gelu(x); x (1 + tanh(...)) is 2 gelu_tanh(x); 1 + tanh(x / 2) is 2 sigmoid(x)."""
    if inner.op == "erf":
        z, scale = _scaled(table, inner.args[0])
        if _close(scale, math.sqrt(0.5)) and _has(rest, z):
            return number * 2, [*_without(rest, z), unary(table, "gelu", z)]
    if inner.op == "tanh":
        for z in rest:
            if _is_cubic(inner.args[0], z):
                return number * 2, [*_without(rest, z), unary(table, "gelu_tanh", z)]
        z, scale = _scaled(table, inner.args[0])
        if scale == 0.5:
            return number * 2, [*rest, unary(table, "sigmoid", z)]
    return None


def _is_cubic(t: Term, z: Term) -> bool:
    """sqrt(2 / pi) (z + 0.044715 z^3), however it is factored."""
    number, inner = (t.data, t.args) if t.op == "mul" else (1.0, (t,))
    root = math.sqrt(2 / math.pi)
    if len(inner) == 1 and inner[0].op == "add" and _close(number, root):
        parts = [(_scale(p)[0], _scale(p)[1]) for p in inner[0].args]
        return _powers(parts, z, {1: 1.0, 3: 0.044715})
    if len(inner) == 2 and _close(number, root) and any(i is z for i in inner):  # z (1 + 0.044715 z^2)
        other = inner[0] if inner[1] is z else inner[1]
        return other.op == "add" and other.data == 1 and _powers([_scale(p) for p in other.args], z, {2: 0.044715})
    if len(inner) == 2 and any(i is z for i in inner):  # 0.79788 z (1 + 0.044715 z z), constants already merged
        other = inner[0] if inner[1] is z else inner[1]
        return other.op == "add" and _close(number * other.data, root)
    if t.op == "add":
        return _powers([_scale(p) for p in t.args], z, {1: root, 3: root * 0.044715})
    return False


def _powers(parts: list[tuple[float, tuple[Term, ...]]], z: Term, wanted: dict[int, float]) -> bool:
    found = {len(fs): n for n, fs in parts if all(f is z for f in fs)}
    return len(parts) == len(wanted) and found.keys() == wanted.keys() and all(_close(found[k], v) for k, v in wanted.items())


def _known_sum(table: Table, number: float, terms: list[Term]) -> Term | None:
    if len(terms) == 1 and number == 0.5 and terms[0].op == "mul" and terms[0].data == 0.5 and len(terms[0].args) == 1:
        inner = terms[0].args[0]  # 0.5 tanh(z / 2) + 0.5
        if inner.op == "tanh" and _scaled(table, inner.args[0])[1] == 0.5:
            return unary(table, "sigmoid", _scaled(table, inner.args[0])[0])
    return None


def _scale(t: Term) -> tuple[float, tuple[Term, ...]]:
    return (t.data, t.args) if t.op == "mul" else (1.0, (t,))


def _scaled(table: Table, t: Term) -> tuple[Term, float]:
    """(z, c) with t = c z."""
    return (product(table, 1.0, list(t.args), t.shape), t.data) if t.op == "mul" else (t, 1.0)


def _has(terms: list[Term], t: Term) -> bool:
    factors = t.args if t.op == "mul" and t.data == 1 else (t,)
    return all(any(f is x for x in terms) for f in factors)


def _without(terms: list[Term], t: Term) -> list[Term]:
    left = list(terms)
    for factor in t.args if t.op == "mul" and t.data == 1 else (t,):
        left.remove(factor)
    return left


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)


# -- linear layers and their parts ----------------------------------------------------------------------------------


def linear(table: Table, x: Any, weight: Any, bias: Any, transposed: bool, shape: Shape) -> Term | None:
    if not isinstance(x, Term) or not isinstance(weight, Term) or weight.op != "param" or not weight.shape or len(weight.shape) != 2:
        return None
    if bias is not None and not (isinstance(bias, Term) and bias.op == "param"):
        return None
    width = weight.shape[1 if transposed else 0]
    path = weight.data.rpartition(".")[0]
    data = Linear(path, weight.data, bias.data if bias is not None else None, transposed, width, (0, width, 1))
    return table.make("linear", x, data=data, shape=shape)


def matmul(table: Table, x: Any, w: Any, shape: Shape = None, alpha: float = 1) -> Term | None:
    flipped = untransposed(w)
    if flipped is not None:
        return linear(table, x, flipped, None, False, shape)
    return linear(table, x, w, None, True, shape)


def untransposed(w: Any) -> Term | None:
    return w.args[0] if isinstance(w, Term) and w.op == "transpose" else None


def _biased(table: Table, terms: list[Term]) -> Term | None:
    """x W^T + b with a parameter b is one linear layer."""
    if len(terms) != 2:
        return None
    for a, b in (terms, terms[::-1]):
        if a.op == "linear" and a.data.bias is None and not a.data.packed and b.op == "param" and b.shape == (a.data.width,):
            return table.make("linear", *a.args, data=replace(a.data, bias=b.data), shape=a.shape)
    return None


def view(table: Table, x: Term, shape: Shape) -> Term:
    """A reshape that keeps the last dimension is no operation of its own."""
    if x.shape is None or shape is None or (x.shape and shape and x.shape[-1] == shape[-1]):
        return x
    if x.op == "view":
        x = x.args[0]
        if x.shape and shape and x.shape[-1] == shape[-1]:
            return x
    return table.make("view", x, data=shape, shape=shape)


def part(table: Table, x: Term, dim: int, rows: tuple[int, int, int]) -> Term:
    """`x[..., start:stop:step]` along `dim`; of a linear layer, the layer with those outputs only."""
    rank = len(x.shape or ())
    dim = dim % rank if rank else dim
    if x.shape and rows == (0, x.shape[dim], 1):
        return x
    shape = None if x.shape is None else (*x.shape[:dim], len(range(*rows)), *x.shape[dim + 1:])
    if x.op == "linear" and dim == rank - 1:
        start, _, step = x.data.rows
        own = range(*x.data.rows)[slice(*rows)]
        return table.make("linear", *x.args, data=replace(x.data, rows=(own.start, own.stop, own.step)), shape=shape)
    return table.make("part", x, data=(dim, rows), shape=shape)


def glu(table: Table, x: Term, dim: int, shape: Shape) -> Term | None:
    if not x.shape:
        return None
    width = x.shape[dim]
    first, second = (part(table, x, dim, r) for r in ((0, width // 2, 1), (width // 2, width, 1)))
    return mul(table, first, unary(table, "sigmoid", second), shape)


def chunk(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    x, n = args[0], kwargs.get("chunks", args[1] if len(args) > 1 else None)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if not isinstance(x, Term) or not x.shape or not isinstance(n, int):
        return None
    size = -(-x.shape[dim] // n)
    return _pieces(table, x, dim, [size] * n)


def split(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    x, sizes = args[0], kwargs.get("split_size_or_sections", kwargs.get("split_size", args[1] if len(args) > 1 else None))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if not isinstance(x, Term) or not x.shape:
        return None
    if isinstance(sizes, int):
        sizes = [sizes] * -(-x.shape[dim] // sizes)
    if not isinstance(sizes, (tuple, list)) or not all(isinstance(s, int) for s in sizes):
        return None
    return _pieces(table, x, dim, list(sizes))


def _pieces(table: Table, x: Term, dim: int, sizes: list[int]) -> Term:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    width = (x.shape or ())[dim]
    return table.make("tuple", *(part(table, x, dim, (a, min(a + s, width), 1)) for a, s in zip(starts, sizes, strict=True)))


def unbind(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    x, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not isinstance(x, Term) or not x.shape:
        return None
    return table.make("tuple", *(_select(table, x, dim, i) for i in range(x.shape[dim])))


def select(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    return _select(table, args[0], args[1], args[2]) if len(args) == 3 and isinstance(args[0], Term) else None


def _select(table: Table, x: Term, dim: int, index: int) -> Term:
    rank = len(x.shape or ())
    dim, shape = dim % rank, x.shape or ()
    rest = (*shape[:dim], *shape[dim + 1:])
    base = x.args[0] if x.op == "view" else None
    if base is not None and base.op == "linear" and rank >= 2 and shape[-2] * shape[-1] == base.data.out:
        if dim == rank - 1:  # interleaved: (..., h, n) taken at [..., i]
            return part(table, base, -1, (index, base.data.out, shape[-1]))
        if dim == rank - 2:
            return part(table, base, -1, (index * shape[-1], (index + 1) * shape[-1], 1))
    return table.make("select", x, data=(dim, index), shape=rest)


def narrow(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    if len(args) != 4 or not all(isinstance(a, int) for a in args[1:]):
        return None
    return part(table, args[0], args[1], (args[2], args[2] + args[3], 1))


def slice_(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    x, dim, start, stop, step = [*args, *[0, 0, None, None, 1][len(args):]]
    if not isinstance(x, Term) or not x.shape or any(isinstance(a, Term) for a in (dim, start, stop, step)):
        return None
    return part(table, x, dim, slice(start, stop, step).indices(x.shape[dim]))


def getitem(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Shape) -> Term | None:
    x, index = args
    if not isinstance(x, Term):
        return x[index] if isinstance(x, tuple) and isinstance(index, int) and isinstance(x[index], Term) else None
    if x.op == "tuple":
        return x.args[index] if isinstance(index, int) else None
    if x.shape is None:
        return table.make("item", x, data=index if isinstance(index, (int, str)) else repr(index), shape=shape)
    index = index if isinstance(index, tuple) else (index,)
    if index and index[0] is Ellipsis:
        return _last(table, x, index[1:], shape)
    if len(index) == len(x.shape) and all(i == slice(None) for i in index[:-1]):
        return _last(table, x, index[-1:], shape)
    if all(i is None or i == slice(None) or i is Ellipsis for i in index):
        return view(table, x, shape)
    return None


def _last(table: Table, x: Term, index: tuple[Any, ...], shape: Shape) -> Term | None:
    if len(index) != 1 or not x.shape:
        return view(table, x, shape) if all(i is None for i in index) else None
    i = index[0]
    if isinstance(i, int):
        return _select(table, x, -1, i % x.shape[-1])
    if isinstance(i, slice) and not any(isinstance(v, Term) for v in (i.start, i.stop, i.step)):
        return part(table, x, -1, i.indices(x.shape[-1]))
    return view(table, x, shape) if i is None else None

