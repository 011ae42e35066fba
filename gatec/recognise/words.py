"""Terms as people read them: one line of an equation, and a few words for what is gated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gatec.match import Term
from gatec.recognise.look import CALLS, attention, convolution, norm, peeled

LETTERS = "xyzuvw"
SIGNS = {"gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


@dataclass
class Wording:
    """Values get letters in the order in which they are met; below `depth` everything is a letter."""

    names: dict[Term, str] = field(default_factory=dict)

    def letter(self, term: Term) -> str:
        if term not in self.names:
            i = len(self.names)
            self.names[term] = LETTERS[i % len(LETTERS)] + (str(i // len(LETTERS)) if i >= len(LETTERS) else "")
        return self.names[term]

    def said(self, term: Term, depth: int = 7) -> str:
        term = peeled(term)
        if term.op == "const":
            return f"{term.data:g}" if isinstance(term.data, (int, float)) else str(term.data)
        if term.op == "param":
            return str(term.data).rpartition(".")[2]
        if depth <= 0 or not term.args or term.op == "item":
            return self.letter(term)
        if term.op == "mul":
            return self.product(term.args, term.data, depth)
        if term.op == "add":
            return self.total(term, depth)
        if term.op in SIGNS:
            a, b = (self.inner(t, depth) for t in term.args)
            return f"{a} {SIGNS[term.op]} {b}"
        return f"{called(term)}({', '.join(self.said(a, depth - 1) for a in term.args)})"

    def product(self, factors: Iterable[Term], number: float, depth: int = 7) -> str:
        above = [self.inner(f, depth) for f in factors if f.op != "recip"]
        below = [self.inner(f.args[0], depth) for f in factors if f.op == "recip"]
        sign = "-" if number < 0 else ""
        above = above if abs(number) == 1 and above else [f"{abs(number):g}", *above]
        return sign + " * ".join(above) + "".join(f" / {b}" for b in below)

    def total(self, term: Term, depth: int) -> str:
        parts = [self.said(a, depth - 1) for a in term.args]
        parts = [f"{term.data:g}", *parts] if term.data else parts
        return " + ".join(parts).replace("+ -", "- ")

    def inner(self, term: Term, depth: int) -> str:
        """A factor: a sum among factors stands in brackets."""
        said = self.said(term, depth - 1)
        return f"({said})" if peeled(term).op in ("add", *SIGNS) and " " in said else said


def called(term: Term) -> str:
    if term.op == "linear":
        name = last(term.data.path or term.data.weight)
        start, stop, step = term.data.rows
        return f"{name}[{start}:{stop}{f':{step}' if step != 1 else ''}]" if term.data.packed else name
    if convolution(term) or norm(term):
        return named(term)
    return next((term.op.removeprefix(p) for p in CALLS if term.op.startswith(p)), term.op)


def named(term: Term) -> str:
    """A layer's last path part, or what it is."""
    path = getattr(term.data, "path", term.data)
    return last(path) if isinstance(path, str) and path else term.op.partition(":")[2] or term.op


def last(path: str) -> str:
    return path.rpartition(".")[2]


def gated(values: Iterable[Term]) -> str:
    """A few words for what a gate lets through."""
    return next((_gated(peeled(v)) for v in values), "value")


def _gated(value: Term) -> str:
    if attention(value):
        return "attention"
    if value.op == "linear":
        return f"linear {last(value.data.path or value.data.weight)}"
    for test, word in ((convolution, "conv"), (norm, "norm")):
        if test(value):
            return f"{word} {named(value)}".removesuffix(f" {word}")
    return {"value": "input", "add": "sum", "mul": "product", "param": "parameter"}.get(value.op, called(value))
