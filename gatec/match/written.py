"""Sums as polynomials over terms, and what written-out activations look like in them: it looks, and builds nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gatec.match.terms import Term, clean

Key = tuple[Term, ...]
Poly = dict[Key, float]  # factors, sorted -> coefficient; the number beside a sum stands under ()

ROOT = math.sqrt(2 / math.pi)
CUBE = 0.044715
LONG = 16  # summands; what is added to a longer sum stands beside it, or a residual stream would cost its square
# t * gate(t) is the activation of t
GATED = {"sigmoid": "silu", "ndtr": "gelu", "ndtr_tanh": "gelu_tanh", "hardsigmoid": "hardswish", "relu": "relu2"}


def key(factors: Iterable[Term]) -> Key:
    return tuple(sorted(factors, key=lambda t: t.number))


def number(x: object) -> float | None:
    """The number that a constant is."""
    if isinstance(x, Term):
        return x.data if x.op == "const" and isinstance(x.data, (int, float)) else None
    return float(x) if isinstance(x, (int, float)) else None


def poly(t: Term) -> Poly:
    """A term as a sum of products; a product with a sum in it is left alone unless only a number stands before it."""
    value = number(t)
    if value is not None:
        return {(): value}
    if t.op == "mul" and len(t.args) == 1 and t.args[0].op == "add":
        return scaled(poly(t.args[0]), t.data)
    if t.op == "mul":
        return {t.args: t.data}
    if t.op != "add" or len(t.args) >= LONG:
        return {(t,): 1.0}
    return ({(): t.data} if t.data else {}) | {k: v for a in t.args for k, v in poly(a).items()}


def scaled(p: Poly, by: float) -> Poly:
    return {k: v * by for k, v in p.items()}


def plus(*polys: Poly) -> Poly:
    """The sum of sums, like terms combined and what cancels gone."""
    found: dict[Key, list[float]] = {}
    for p in polys:
        for k, v in p.items():
            found.setdefault(k, []).append(v)
    sums = {k: (sum(vs), max(map(abs, vs))) for k, vs in found.items()}
    return {k: clean(v) for k, (v, most) in sums.items() if math.isinf(v) or abs(v) > 1e-6 * most}


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=2e-5)


def ratio(p: Poly, q: Poly) -> float | None:
    """r with p = r q."""
    if not p or p.keys() != q.keys():
        return None
    first = next(iter(p))
    r = p[first] / q[first]
    return r if all(close(p[k], r * q[k]) for k in p) else None


def content(p: Poly) -> float:
    """The number that is taken out in front of a sum: that of its simplest summand, and a sign that all of it has."""
    sign = -1.0 if all(v < 0 for v in p.values()) else 1.0
    if abs(p.get((), 0.0)) == 1:
        return sign
    least = min(len(k) for k in p if k)
    if least > 1 and () in p:
        return sign * abs(p[()])
    return sign * max(abs(v) for k, v in p.items() if len(k) == least)


def negative(t: Term) -> bool:
    return all(v < 0 for v in poly(t).values())


def mixed(t: Term) -> bool:
    return t.op == "add" and len({v < 0 for v in poly(t).values()}) == 2


def complement(t: Term) -> Key | None:
    """The factors of P where t is 1 - P."""
    if t.op != "add" or t.data != 1 or len(t.args) != 1:
        return None
    k, v = next((k, v) for k, v in poly(t).items() if k)
    return k if v == -1 else None


def without(factors: Iterable[Term], taken: Iterable[Term]) -> list[Term] | None:
    """The factors that are left when some are taken, or None where they are not all there."""
    left = list(factors)
    for t in taken:
        at = next((i for i, f in enumerate(left) if f is t), None)
        if at is None:
            return None
        left.pop(at)
    return left


def found_in(t: Term, factors: list[Term]) -> tuple[float, Key] | None:
    """(c, Z) with t = c Z, where Z stands among the factors."""
    p = poly(t)
    if len(p) == 1:
        k, c = next(iter(p.items()))
        return (c, k) if k and without(factors, k) is not None else None
    for f in factors:
        r = ratio(p, poly(f)) if f.op == "add" else None
        if r is not None:
            return r, (f,)
    return None


def gate(f: Term) -> tuple[str, Term] | None:
    """(activation, t) where t f is that activation of t."""
    if f.op in GATED:
        return GATED[f.op], f.args[0]
    if f.op == "tanh" and f.args[0].op == "softplus" and f.args[0].data is None:
        return "mish", f.args[0].args[0]
    if f.op in ("gt", "ge") and number(f.args[1]) == 0:
        return "relu", f.args[0]
    if f.op == "recip" and f.args[0].op == "add" and f.args[0].data == 1 and len(f.args[0].args) == 1:
        inner = f.args[0].args[0]
        return ("softsign", inner.args[0]) if inner.op == "abs" else None
    return None


def cubic(p: Poly) -> tuple[float, Key] | None:
    """(c, Z) where p is sqrt(2 / pi) (z + 0.044715 z^3) of z = c Z, however it is factored."""
    if len(p) == 1:
        ((k, v),) = p.items()
        return next((found for f in k if f.op == "add" and (found := _factored(k, v, f))), None)
    for k, v in p.items():  # a product Z
        c = v / ROOT
        if k and ratio(p, {k: ROOT * c, key(k * 3): ROOT * CUBE * c**3}) is not None:
            return snapped(c), k
    sums = {f for k in p for f in k if f.op == "add"}
    for h in sums:  # a sum Z
        wanted = plus(scaled(poly(h), ROOT), {(h, h, h): ROOT * CUBE})
        if close(ratio(p, wanted) or 0, 1):
            return 1.0, (h,)
    return None


def _factored(k: Key, v: float, f: Term) -> tuple[float, Key] | None:
    """sqrt(2 / pi) z (1 + 0.044715 z^2)."""
    rest, p = key(without(k, [f]) or ()), poly(f)
    if p.keys() != {(), key(rest * 2)} or p[key(rest * 2)] * p[()] <= 0:
        return None
    c = snapped(math.sqrt(p[key(rest * 2)] / p[()] / CUBE))
    return (c, rest) if close(v * p[()], ROOT * c) else None


def snapped(c: float) -> float:
    """A coefficient that a rounded constant has moved a little, back where it was meant to be."""
    short = float(f"{c:.4g}")
    return short if close(c, short) else c
