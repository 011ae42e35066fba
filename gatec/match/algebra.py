"""How terms are built so that equal computations become equal terms: sums, products, and activations written out.

"mul": args are the factors, data the number in front. "add": args are the summands, data the number beside them. Like
terms are combined; a number common to a sum stands in front of it; p b + (1 - p) a is written so in every spelling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from gatec.match.terms import Table, Term, clean
from gatec.match.written import (
    Key,
    Poly,
    close,
    complement,
    content,
    cubic,
    found_in,
    gate,
    key,
    mixed,
    negative,
    number,
    plus,
    poly,
    ratio,
    scaled,
    snapped,
    without,
)

Shape = tuple[int, ...] | None
Operand = Term | int | float

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

# -- products -------------------------------------------------------------------------------------------------------


def mul(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    factors = [x for x in (a, b) if isinstance(x, Term)]
    n = math.prod(x for x in (a, b) if not isinstance(x, Term))
    return product(table, n, factors, shape or _broadcast(factors))


def product(table: Table, n: float, terms: list[Term], shape: Shape = None) -> Term:
    n, factors = _folded(table, *_flat(n, terms))
    if n == 0 or not factors:
        return table.const(clean(n))
    if len(factors) == 1:
        return (
            total(table, scaled(poly(factors[0]), n), shape)
            if factors[0].op == "add"
            else _monomial(table, n, factors, shape)
        )
    return _monomial(table, *_signed(table, n, factors), shape)


def _flat(n: float, terms: list[Term]) -> tuple[float, list[Term]]:
    factors: list[Term] = []
    for t in terms:
        value = number(t)
        if value is not None:
            n *= value
        elif t.op == "mul":
            n, factors = n * t.data, [*factors, *t.args]
        else:
            factors.append(t)
    return clean(n), factors


def _monomial(table: Table, n: float, factors: list[Term] | Key, shape: Shape = None) -> Term:
    if len(factors) == 1 and n == 1:
        return factors[0]
    return table.make("mul", *key(factors), data=clean(n), shape=shape or _broadcast(list(factors)))


def _signed(table: Table, n: float, factors: list[Term]) -> tuple[float, list[Term]]:
    """P - 1 among factors becomes 1 - P; a minus before one difference is its operands exchanged."""
    for i, f in enumerate(factors):
        if f.op == "add" and f.data == -1 and len(f.args) == 1 and mixed(f):
            n, factors = -n, [*factors[:i], total(table, scaled(poly(f), -1), f.shape), *factors[i + 1 :]]
    turned = [i for i, f in enumerate(factors) if mixed(f) and complement(f) is None]
    if n < 0 and len(turned) == 1:
        i = turned[0]
        n, factors = -n, [*factors[:i], total(table, scaled(poly(factors[i]), -1), factors[i].shape), *factors[i + 1 :]]
    return n, factors


def div(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    value = number(b)
    if value is not None:
        return mul(table, a, 1 / value if value else math.inf, shape)
    assert isinstance(b, Term)
    return mul(table, a, recip(table, b, shape), shape)


def recip(table: Table, x: Term, shape: Shape = None) -> Term:
    value = number(x)
    if value is not None:
        return table.const(1 / value if value else math.inf)
    if x.op == "mul":
        return product(table, 1 / x.data, [recip(table, f) for f in x.args], shape or x.shape)
    if x.op == "add" and x.data == 1 and len(x.args) == 1 and x.args[0].op == "exp":  # 1 / (1 + exp(-z))
        return unary(table, "sigmoid", mul(table, x.args[0].args[0], -1))
    if x.op in ("sqrt", "rsqrt"):
        return unary(table, {"sqrt": "rsqrt", "rsqrt": "sqrt"}[x.op], x.args[0])
    if x.op == "exp":
        return unary(table, "exp", mul(table, x.args[0], -1))
    return x.args[0] if x.op == "recip" else table.make("recip", x, shape=shape or x.shape)


def power(table: Table, x: Operand, n: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    exponent = number(n)
    if not isinstance(x, Term) or exponent is None:
        return None
    if exponent == int(exponent) and 0 < abs(exponent) <= 4:
        base = x if exponent > 0 else recip(table, x)
        return product(table, 1.0, [base] * int(abs(exponent)), shape)
    if exponent in (0.5, -0.5):
        return unary(table, "sqrt" if exponent > 0 else "rsqrt", x)
    return table.make("pow", x, data=exponent, shape=shape or x.shape)


# -- sums -----------------------------------------------------------------------------------------------------------


def add(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    terms = [x for x in (a, b) if isinstance(x, Term)]
    return total(table, plus(_poly(a), scaled(_poly(b), alpha)), shape or _broadcast(terms))


def _poly(x: Operand) -> Poly:
    return poly(x) if isinstance(x, Term) else {(): float(x)}


def sub(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
    return add(table, a, b, shape, -alpha)


def total(table: Table, p: Poly, shape: Shape = None) -> Term:
    p = _biased(table, _mixed_by(table, {k: clean(v) for k, v in p.items() if v}))
    n, products = p.get((), 0.0), [(k, v) for k, v in p.items() if k]
    if not products:
        return table.const(n)
    known = _known_sum(table, n, products)
    if known is not None:
        return known
    if n == 0 and len(products) == 1:
        return _monomial(table, products[0][1], products[0][0], shape)
    front = content(p)
    args = key(_monomial(table, v / front, k) for k, v in products)
    whole = table.make("add", *args, data=clean(n / front), shape=shape or _broadcast(list(args)))
    return whole if clean(front) == 1 else table.make("mul", whole, data=clean(front), shape=whole.shape)


def _mixed_by(table: Table, p: Poly) -> Poly:
    """Every spelling of a mix, p a + (1 - p) b, in this one."""
    for find in (_halved, _drawn, _paired):
        while (found := find(table, p)) is not None:
            p = found
    return _grouped(table, p)


def _halved(table: Table, p: Poly) -> Poly | None:
    """torch's own decomposition of lerp from both ends: where(t, b, a) + (w - t) (b - a) is a + w (b - a)."""
    for k in (k for k in p if len(k) == 1 and k[0].op == "where"):
        test, b, a = k[0].args
        for other in (other for other in p if other != k):
            for f in (f for f in other if poly(f).get((test,)) == -1):
                difference = product(table, p[other] / p[k], without(other, [f]) or [])
                if difference is sub(table, b, a):
                    weight = total(table, {i: v for i, v in poly(f).items() if i != (test,)}, f.shape)
                    mixed_up = add(table, a, mul(table, weight, difference))
                    return plus({i: v for i, v in p.items() if i not in (k, other)}, scaled(poly(mixed_up), p[k]))
    return None


def _drawn(table: Table, p: Poly) -> Poly | None:
    """b + g (a - b) is g a + (1 - g) b."""
    for k, c in p.items():
        for f in {f for f in k if f.op == "add" and len(k) > 1}:
            rest = without(k, [f])
            assert rest is not None
            for inner, ci in poly(f).items():
                if not inner and close(p.get(key(rest), 0.0), -c * ci):  # x + x (f - 1)
                    others = {i: v for i, v in p.items() if i not in (k, key(rest))}
                    left = total(table, {i: v for i, v in poly(f).items() if i}, f.shape)
                    return plus(others, poly(product(table, c, [*rest, left])))
                if inner and inner in p and close(p[inner], -c * ci):
                    left = total(table, {i: v for i, v in poly(f).items() if i != inner}, f.shape)
                    one_less = sub(table, 1, product(table, 1.0, rest))
                    others = {i: v for i, v in p.items() if i not in (k, inner)}
                    drawn = poly(product(table, c, [*rest, left]))
                    return plus(others, drawn, poly(product(table, p[inner], [*inner, one_less])))
    return None


def _paired(table: Table, p: Poly) -> Poly | None:
    """b - g b is (1 - g) b."""
    longer: dict[Term, list[Key]] = {}
    for k in (k for k in p if len(k) > 1):
        for f in set(k):
            longer.setdefault(f, []).append(k)
    for k, c in p.items():
        for more in longer.get(k[0], ()) if k else ():
            rest = without(more, k) if len(more) > len(k) and close(p[more], -c) else None
            if rest:
                one_less = sub(table, 1, product(table, 1.0, rest))
                others = {i: v for i, v in p.items() if i not in (k, more)}
                return plus(others, poly(product(table, c, [*k, one_less])))
    return None


def _grouped(table: Table, p: Poly) -> Poly:
    """Where 1 - g stands in a sum, everything times it is one summand, and everything times g another."""
    for one_less in {f for k in p for f in k if complement(f) is not None}:
        for shared in ((one_less,), complement(one_less) or ()):
            group = {k: left for k in p if (left := without(k, shared)) is not None}
            if len(group) > 1:
                inner = total(table, plus(*({key(left): p[k]} for k, left in group.items())))
                p = plus({k: v for k, v in p.items() if k not in group}, poly(product(table, 1.0, [*shared, inner])))
    return p


def _biased(table: Table, p: Poly) -> Poly:
    """x W^T + b with a parameter b is one linear layer."""
    layers = [k for k, v in p.items() if len(k) == 1 and v == 1 and k[0].op == "linear" and k[0].data.bias is None]
    for k in layers if len(layers) == 1 else ():
        layer = k[0]
        biases = [
            b
            for b, v in p.items()
            if len(b) == 1 and v == 1 and b[0].op == "param" and b[0].shape == (layer.data.width,)
        ]
        if len(biases) == 1 and not layer.data.packed:
            whole = table.make(
                "linear", *layer.args, data=replace(layer.data, bias=biases[0][0].data), shape=layer.shape
            )
            return plus({i: v for i, v in p.items() if i not in (k, biases[0])}, {(whole,): 1.0})
    return p


def _known_sum(table: Table, n: float, products: list[tuple[Key, float]]) -> Term | None:
    if any(len(k) != 1 for k, _ in products):
        return None
    terms = [(k[0], v) for k, v in products]
    if len(terms) == 1 and n:
        return _known_shift(table, n, *terms[0])
    if len(terms) == 2 and not n:
        return _known_pair(table, *terms) or _known_pair(table, *terms[::-1])
    return None


def _known_shift(table: Table, n: float, f: Term, v: float) -> Term | None:
    """1 + tanh(z / 2) is 2 sigmoid(z); 2 sigmoid(z) - 1 is tanh(z / 2)."""
    if f.op == "tanh" and close(n, v):
        found = cubic(poly(f.args[0]))
        if found is not None:
            return mul(table, 2 * v, unary(table, "ndtr_tanh", product(table, found[0], list(found[1]))))
        if f.args[0].op == "mul" and f.args[0].data == 0.5:
            return mul(table, 2 * v, unary(table, "sigmoid", mul(table, f.args[0], 2)))
    if f.op == "sigmoid" and close(v, -2 * n):
        return mul(table, -n, unary(table, "tanh", mul(table, f.args[0], 0.5)))
    return None


def _known_pair(table: Table, first: tuple[Term, float], second: tuple[Term, float]) -> Term | None:
    (f, v), (g, w) = first, second
    if f.op == "abs" and f.args[0] is g and close(v, w):  # (x + |x|) / 2
        return mul(table, 2 * v, unary(table, "relu", g))
    if f.op != "relu":
        return None
    x, c = f.args[0], w / v
    if g.op == "logsigmoid" and close(c, -1) and g.args[0] is unary(table, "abs", x):  # max(x, 0) + log(1 + exp(-|x|))
        return mul(table, v, unary(table, "softplus", x))
    if g.op != "relu":
        return None
    if close(c, 1) and close(ratio(poly(g.args[0]), poly(x)) or 0, -1):  # max(x, 0) + max(-x, 0)
        return mul(table, v, unary(table, "abs", x))
    if c < 0 and close(ratio(poly(g.args[0]), poly(x)) or 0, -1):  # max(x, 0) + c min(x, 0)
        return mul(table, v, leaky(table, x, -c)) if abs(c) < 1 else None
    alpha = ratio(poly(g.args[0]), plus({(): 1.0}, {(unary(table, "exp", x),): -1.0}))
    if alpha is not None and alpha > 0 and c < 0:  # max(x, 0) + min(a (exp(x) - 1), 0)
        return mul(table, v, elu(table, x, -c * alpha))
    return None


# -- functions of one value -----------------------------------------------------------------------------------------


def unary(table: Table, name: str, x: Term, data: object = None) -> Term:
    """`name` of x, by the one way that gatec writes it."""
    rule = RULES.get(name) if data is None else None
    found = rule(table, x) if rule is not None else None
    return found or table.make(name, x, data=data, shape=x.shape)


def _complemented(name: str) -> Callable[[Table, Term], Term | None]:
    """f(-x) = 1 - f(x)."""

    def rule(table: Table, x: Term) -> Term | None:
        return sub(table, 1, unary(table, name, mul(table, x, -1))) if negative(x) else None

    return rule


def _sigmoid(table: Table, x: Term) -> Term | None:
    found = cubic(scaled(poly(x), 0.5))  # sigmoid(2 z) is (1 + tanh(z)) / 2
    if found is not None:
        return unary(table, "ndtr_tanh", product(table, found[0], list(found[1])))
    return _complemented("sigmoid")(table, x)


def _odd(name: str) -> Callable[[Table, Term], Term | None]:
    def rule(table: Table, x: Term) -> Term | None:
        return mul(table, unary(table, name, mul(table, x, -1)), -1) if negative(x) else None

    return rule


def _even(name: str) -> Callable[[Table, Term], Term | None]:
    def rule(table: Table, x: Term) -> Term | None:
        return unary(table, name, mul(table, x, -1)) if negative(x) else None

    return rule


def _log(table: Table, x: Term) -> Term | None:
    if x.op == "sigmoid":
        return unary(table, "logsigmoid", x.args[0])
    if x.op == "add" and x.data == 1 and len(x.args) == 1 and x.args[0].op == "exp":
        return unary(table, "softplus", x.args[0].args[0])
    return None


def _opposite(name: str) -> Callable[[Table, Term], Term | None]:
    """softplus(-x) = -logsigmoid(x), and back."""

    def rule(table: Table, x: Term) -> Term | None:
        return mul(table, unary(table, name, mul(table, x, -1)), -1) if negative(x) else None

    return rule


def _erf(table: Table, x: Term) -> Term:
    """erf by the normal distribution function, from which GELU is made."""
    inner = {k: snapped(v * math.sqrt(2)) for k, v in poly(x).items()}
    return sub(table, mul(table, unary(table, "ndtr", total(table, inner, x.shape)), 2), 1)


RULES: dict[str, Callable[[Table, Term], Term | None]] = {
    "sigmoid": _sigmoid,
    "ndtr": _complemented("ndtr"),
    "ndtr_tanh": _complemented("ndtr_tanh"),
    "hardsigmoid": _complemented("hardsigmoid"),
    "tanh": _odd("tanh"),
    "softsign": _odd("softsign"),
    "sin": _odd("sin"),
    "cos": _even("cos"),
    "abs": lambda t, x: t.const(abs(x.data)) if number(x) is not None else _even("abs")(t, x),
    "exp": lambda t, x: x.args[0] if x.op == "log" else None,
    "log": _log,
    "softplus": _opposite("logsigmoid"),
    "logsigmoid": _opposite("softplus"),
    "erf": _erf,
    "erfc": lambda t, x: sub(t, 1, _erf(t, x)),
    "expm1": lambda t, x: sub(t, unary(t, "exp", x), 1),
    "log1p": lambda t, x: unary(t, "log", add(t, x, 1)),
    "relu": lambda t, x: clamp(t, x, 0.0, None) if x.op == "clamp" else x if x.op == "relu" else None,
}


def softplus(table: Table, x: Term, beta: float = 1, threshold: float = 20) -> Term:
    if threshold < 10:  # the linear part begins where it shows
        return table.make("softplus", x, data=(beta, threshold), shape=x.shape)
    return mul(table, unary(table, "softplus", mul(table, x, beta)), 1 / beta)


def leaky(table: Table, x: Term, slope: float) -> Term:
    return unary(table, "relu", x) if slope == 0 else unary(table, "leaky_relu", x, clean(slope))


def elu(table: Table, x: Term, alpha: float = 1) -> Term:
    return unary(table, "elu", x, None if close(alpha, 1) else clean(alpha))


# -- bounds ------------------------------------------------------------------------------------------------------------


def clamp(table: Table, x: Term, low: object, high: object) -> Term | None:
    if any(isinstance(v, Term) and number(v) is None for v in (low, high)):
        return None
    low, high = number(low), number(high)
    if x.op == "relu":
        x = table.make("clamp", x.args[0], data=(0.0, None), shape=x.shape)
    if x.op == "clamp":
        tighter = _overlap(x.data, (low, high))
        if tighter is None:
            return table.make("clamp", x, data=(low, high), shape=x.shape)
        x, (low, high) = x.args[0], tighter
    if low == 0 and high is None:
        return unary(table, "relu", x)
    if high == 0 and low is None:
        return mul(table, unary(table, "relu", mul(table, x, -1)), -1)
    if low is not None and high is not None:
        found = _hard(table, x, low, high)
        if found is not None:
            return found
    return table.make("clamp", x, data=(low, high), shape=x.shape)


def _overlap(
    inner: tuple[float | None, float | None], outer: tuple[float | None, float | None]
) -> tuple[float | None, float | None] | None:
    lows, highs = ([v for v in side if v is not None] for side in zip(inner, outer, strict=True))
    low, high = max(lows, default=None), min(highs, default=None)
    return None if low is not None and high is not None and low >= high else (low, high)


def _hard(table: Table, x: Term, low: float, high: float) -> Term | None:
    """clamp(z / 6 + 1 / 2, 0, 1) is hardsigmoid(z), at any scale."""
    slope, middle, p = (high - low) / 6, (high + low) / 2, poly(x)
    if middle == 0 or slope <= 0 or len(p) < 2 or not close(p.get((), 0.0), middle):
        return None
    inner = total(table, {k: snapped(v / slope) for k, v in p.items() if k}, x.shape)
    return add(table, mul(table, unary(table, "hardsigmoid", inner), high - low), low)


# -- activations among factors --------------------------------------------------------------------------------------


def _folded(table: Table, n: float, factors: list[Term]) -> tuple[float, list[Term]]:
    """Replace the factors of a written-out activation by the activation itself, as often as there is one."""
    while (found := _activation(table, n, factors)) is not None:
        n, factors = found
    return clean(n), factors


def _activation(table: Table, n: float, factors: list[Term]) -> tuple[float, list[Term]] | None:
    for f in factors:
        rest = without(factors, [f]) or []
        found = _paired_off(table, n, f, rest)
        if found is not None:
            return found
    return _gated(table, n, factors, True) or _gated(table, n, factors, False)


def _paired_off(table: Table, n: float, f: Term, rest: list[Term]) -> tuple[float, list[Term]] | None:
    """What one factor makes with another, or with the number in front."""
    if f.op == "exp":  # exp(z) / (1 + exp(z))
        sigmoid = table.make("sigmoid", f.args[0], shape=f.shape)
        left = next((without(rest, [r]) for r in rest if complement(r) == (sigmoid,)), None)
        return (n, [*left, sigmoid]) if left is not None else None
    if f.op in ("gt", "ge") and number(f.args[0]) == 0:  # x (x <= 0)
        found = found_in(f.args[1], rest)
        if found is not None and found[0] > 0:
            return -n, [*(without(rest, found[1]) or []), unary(table, "relu", product(table, -1.0, list(found[1])))]
    if f.op == "relu" and f in rest:
        return n, [*(without(rest, [f]) or []), unary(table, "relu2", f.args[0])]
    if f.op == "silu" and f.args[0].op == "mul" and n != 1 and close(n * f.args[0].data, 1):  # silu(c x) / c
        x, c = product(table, 1.0, list(f.args[0].args)), f.args[0].data
        return 1.0, [*rest, unary(table, "swish", x, c)]
    if f.op == "elu" and f.data is not None and close(n, SELU_SCALE) and close(f.data, SELU_ALPHA):
        return 1.0, [*rest, unary(table, "selu", f.args[0])]
    return None


def _gated(table: Table, n: float, factors: list[Term], exactly: bool) -> tuple[float, list[Term]] | None:
    for f in factors:
        rest = without(factors, [f]) or []
        name, t = gate(f) or ("", f)
        found = found_in(t, rest) if name else None
        if found is None:
            continue
        c, taken = found
        left = without(rest, taken) or []
        if close(c, 1) or (not exactly and close(n, c)):
            return n / c, [*left, unary(table, name, t)]
        if not exactly and name == "relu" and c > 0:
            return n, [*left, unary(table, name, product(table, 1.0, list(taken)))]
        if not exactly and name == "silu":
            return n, [*left, unary(table, "swish", product(table, 1.0, list(taken)), clean(c))]
    return None


def _broadcast(terms: list[Term]) -> Shape:
    shapes = [t.shape for t in terms if t.shape]
    if not shapes:
        return next((t.shape for t in terms if t.shape is not None), None)
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(s)) + s for s in shapes), strict=True)
    return tuple(next((s for s in column if s != 1), 1) for column in columns)
