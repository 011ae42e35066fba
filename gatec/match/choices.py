"""Comparisons and what is chosen by them: max, min, where, and the activations that are written with these."""

from __future__ import annotations

import math
from collections.abc import Callable

from gatec.match.algebra import SELU_ALPHA, SELU_SCALE, Operand, Shape, clamp, elu, leaky, mul, sub, unary
from gatec.match.terms import Table, Term
from gatec.match.written import close, key, number, plus, poly, ratio, scaled


def compare(name: str) -> Callable[..., Term]:
    def build(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
        left, right = (x if isinstance(x, Term) else table.const(float(x)) for x in (a, b))
        x, y = number(left), number(right)
        if x is not None and y is not None:
            return table.const({"lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[name])
        if name in ("lt", "le"):
            return table.make({"lt": "gt", "le": "ge"}[name], right, left, shape=shape)
        return table.make(name, left, right, shape=shape)

    return build


def equal(name: str) -> Callable[..., Term]:
    def build(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term:
        left, right = (x if isinstance(x, Term) else table.const(float(x)) for x in (a, b))
        return table.make(name, *((right, left) if left.op == "const" else (left, right)), shape=shape)

    return build


def negated(table: Table, test: Term) -> Term:
    """not a > b is b >= a."""
    if test.op in ("gt", "ge"):
        return table.make({"gt": "ge", "ge": "gt"}[test.op], *test.args[::-1], shape=test.shape)
    if test.op in ("eq", "ne"):
        return table.make({"eq": "ne", "ne": "eq"}[test.op], *test.args, shape=test.shape)
    return test.args[0] if test.op == "not" else table.make("not", test, shape=test.shape)


def maximum(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    for x, n in ((a, number(b)), (b, number(a))):
        if n is not None and isinstance(x, Term):
            return clamp(table, x, n, None)
    if not isinstance(a, Term) or not isinstance(b, Term):
        return None
    c = ratio(poly(b), poly(a))
    if c is not None and 0 < abs(c) < math.inf:  # max(x, c x)
        if close(c, -1):
            return unary(table, "abs", a)
        if c > 0:
            return a if close(c, 1) else leaky(table, *((a, c) if c < 1 else (b, 1 / c)))
    return table.make("maximum", *key((a, b)), shape=shape)


def minimum(table: Table, a: Operand, b: Operand, shape: Shape = None, alpha: float = 1) -> Term | None:
    for x, n in ((a, number(b)), (b, number(a))):
        if n is not None and isinstance(x, Term):
            return clamp(table, x, None, n)
    if not isinstance(a, Term) or not isinstance(b, Term):
        return None
    return a if a is b else table.make("minimum", *key((a, b)), shape=shape)


def where(table: Table, test: Term, yes: Operand, no: Operand, shape: Shape = None) -> Term:
    yes, no = (x if isinstance(x, Term) else table.const(x) for x in (yes, no))
    if test.op == "not" or (test.op in ("gt", "ge") and number(test.args[0]) is not None):
        test, yes, no = negated(table, test), no, yes
    if yes is no or number(test) is not None:
        return yes if yes is no or number(test) else no
    if plus(poly(yes), scaled(poly(no), -1)) == {(): -1.0}:  # x - 1 or x
        return sub(table, no, test, shape)
    if number(no) == 0:
        return mul(table, test, yes, shape)
    if number(yes) == 0:
        return mul(table, negated(table, test), no, shape)
    known = _chosen(table, test, yes, no) if test.op in ("gt", "ge") else None
    return known or table.make("where", test, yes, no, shape=shape)


def _chosen(table: Table, test: Term, yes: Term, no: Term) -> Term | None:
    """The activations that are one thing above a bound and another below it."""
    x, bound = test.args[0], number(test.args[1])
    scale = ratio(poly(yes), poly(x))
    if bound is not None and bound >= 10 and scale is not None:
        beyond = ratio(poly(no), poly(unary(table, "softplus", x)))
        return no if beyond is not None and close(beyond, scale) else None
    if bound != 0 or scale is None:
        return None
    slope = ratio(poly(no), poly(yes))
    if slope is not None:
        return mul(table, scale, leaky(table, x, slope))
    alpha = ratio(poly(no), plus({(unary(table, "exp", x),): 1.0}, {(): -1.0}))
    if alpha is None:
        return None
    if close(scale, SELU_SCALE) and close(alpha, SELU_SCALE * SELU_ALPHA):
        return unary(table, "selu", x)
    return mul(table, scale, elu(table, x, alpha / scale))
