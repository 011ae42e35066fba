"""Questions about terms: what stands under views and casts, what a layer is, what a value comes from."""

from __future__ import annotations

from collections.abc import Iterator

from gatec.match import Term

CALLS = ("layer:", "call:", "module:")
VIEWS = {"view", "part", "select", "item", "transpose", "permute", "cast", "dropout", "repeat", "call:expand"}
ATTENTION = ("attention", "module:MultiheadAttention")


def peeled(term: Term) -> Term:
    """What stands under views, parts and casts."""
    while term.op in VIEWS and term.args:
        term = term.args[0]
    return term


def convolution(term: Term) -> bool:
    return term.op == "conv"


def norm(term: Term) -> bool:
    return term.op == "norm" or term.op.endswith("RMSNorm")


def layered(term: Term) -> bool:
    return term.op == "linear" or convolution(term)


def attention(term: Term, depth: int = 12) -> bool:
    """Whether the value is what attention returned, seen through its reshapes."""
    term = peeled(term)
    if term.op in ATTENTION:
        return True
    return depth > 0 and term.op == "call:contiguous" and bool(term.args) and attention(term.args[0], depth - 1)


def below(terms: tuple[Term, ...], stop: frozenset[Term] = frozenset(), most: int = 64) -> Iterator[Term]:
    """Terms that these are computed from, nearest first, not beyond layers and at most `most` of them."""
    queue, seen = list(terms), set(terms)
    for term in queue:
        yield term
        if layered(term) or term in stop:
            continue
        for a in term.args:
            if a not in seen and len(queue) < most:
                seen.add(a)
                queue.append(a)
