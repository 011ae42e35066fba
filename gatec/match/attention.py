"""Where attention stands: found by its arithmetic, however a model wraps it."""

from __future__ import annotations

from gatec.match.terms import Part, Term


def attention(term: Term) -> tuple[Part, Term] | None:
    """The attention that `term` is a view of: the layer of its queries with the number of heads, and what that reads."""
    core = _core(term)
    query = _nearest_linear(core.args[0]) if core is not None else None
    if core is None or query is None:
        return None
    return Part(query.data.path, _heads(core, term)), query.args[0]


def _heads(core: Term, whole: Term) -> int | None:
    """The heads that were laid side by side: (..., heads, length, width) became (..., length, heads * width)."""
    if core.shape is None or whole.shape is None or len(core.shape) < 3:
        return None
    heads, width, together = core.shape[-3], core.shape[-1], whole.shape[-1]
    return heads if all(isinstance(n, int) for n in (heads, width)) and heads * width == together else None


def _core(term: Term) -> Term | None:
    while not _attends(term):
        computed = [a for a in term.args if a.op not in ("param", "const", "size")]
        if len(computed) != 1 or term.op == "linear":
            return None
        term = computed[0]
    return term


def _attends(term: Term) -> bool:
    name = term.op.removeprefix("call:")
    return bool(term.args) and ("attention" in name or (name in ("matmul", "bmm", "einsum") and _weighs(term.args[0])))


def _weighs(term: Term) -> bool:
    """Whether the first operand of a product is a softmax, seen through views, casts and dropout."""
    while term.op in ("view", "dropout", "permute", "transpose", "part"):
        term = term.args[0]
    return term.op == "softmax"


def _nearest_linear(term: Term) -> Term | None:
    """The first linear layer on the way back, first operands first."""
    waiting, seen = [term], {term}
    while waiting:
        term = waiting.pop()
        if term.op == "linear":
            return term
        fresh = [a for a in term.args if a not in seen]
        seen.update(fresh)
        waiting += reversed(fresh)
    return None
