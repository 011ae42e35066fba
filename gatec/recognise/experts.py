"""Several layers of one value side by side, to be weighed and summed: what experts are, with or without a softmax."""

from __future__ import annotations

from collections.abc import Iterator

from gatec.match import Term
from gatec.recognise.look import (
    CONTRACTIONS,
    FIXED,
    GROUPED,
    INDEXED,
    JOINS,
    axis,
    below,
    fixed,
    layer_of,
    layered,
    learned,
    parameter,
    peeled,
    reaches,
    whole,
)
from gatec.recognise.scene import Scene
from gatec.recognise.signals import Signal, core

PICKS = {"call:topk", "call:argmax", "argmax"}


def bundle(value: Term) -> Term | None:
    """Where several values were put side by side, or a batch of matrices made them."""
    for t in below((value,), 12):
        several = t.op in JOINS and sum(not fixed(a) for a in t.args) > 1
        batch = t.op in CONTRACTIONS and any(_matrices(a) for a in t.args)
        if several or batch:
            return t
    return None


def _matrices(t: Term) -> bool:
    t = peeled(t)
    return parameter(t) and len(t.shape or ()) > 2


def chosen(term: Term) -> tuple[Term, Term] | None:
    """(which, of what): stored matrices for groups of rows, or some that are looked up, and the choice that says which."""
    stored = [a for a in term.args if parameter(peeled(a)) and len(a.shape or ()) > 2]
    if not stored or term.op not in GROUPED | INDEXED:
        return None
    for which in (a for a in term.args[1:] if a not in stored):
        picks = next((t for t in below((which,), 32) if t.op in PICKS and learned(t)), None)
        if picks is not None:
            return which, picks
    return None


def members(value: Term) -> list[Term]:
    found = bundle(value)
    return [peeled(a) for a in found.args] if found is not None and found.op in JOINS else [peeled(value)]


def experts(value: Term) -> list[Term]:
    """The members of a bundle that are what different layers made of one value."""
    found = peeled(value)
    made = [layer_of(a) for a in found.args] if found.op in JOINS else []
    if len(made) < 2 or any(m is None for m in made) or len({m.data for m in made if m is not None}) < len(made):
        return []
    roots = [{t for t in below((m,), 64, through=True) if not _alone(t)} for m in made if m is not None]
    return [peeled(a) for a in found.args] if set.intersection(*roots) else []


def _alone(t: Term) -> bool:
    """What says nothing about where a value comes from."""
    return t.op == "param" or t.op in FIXED


def summed(scene: Scene, term: Term) -> Iterator[Signal]:
    """What weighs experts, or the numbers that one layer makes for all of them, where products are summed over experts."""
    dims = _summed_over(scene, term)
    for f in term.args:
        rest = [v for v in term.args if v is not f and not fixed(v)]
        if len(rest) == 1 and any(_along(f, rest[0], d) for d in dims):
            yield Signal(f, *core(f))


def _summed_over(scene: Scene, term: Term) -> tuple[int, ...]:
    """The dimension over which a product is summed, counted from the last, where that is all that is done with it."""
    found = {r.data[0] if r.op == "sum" else () for r in scene.readers.get(term, ())}
    return found.pop() if term.op == "mul" and len(found) == 1 else ()


def _along(weights: Term, value: Term, dim: int) -> bool:
    inner = core(weights)[0]
    if inner.op == "softmax" and inner.data == dim == -1 and weights.shape == value.shape:
        return layered(peeled(value)) and axis(value) == dim
    side, many = whole(value), len(experts(value))
    return many > 1 and _size(side, dim) == many == _size(weights, dim) and _narrower(weights, side, many)


def _size(t: Term, dim: int) -> int | None:
    shape = t.shape or ()
    return shape[dim] if len(shape) >= -dim else None


def _narrower(weights: Term, side: Term, many: int) -> bool:
    """A number per expert, not one for each of its features; of experts that are numbers themselves, that is the same."""
    sizes = [weights.shape or (), side.shape or ()]
    wide = [sum(s != 1 for s in shape) for shape in sizes]
    return wide[0] < wide[1] or all((a.shape or (1,))[-1] == 1 for a in side.args)


def contracted(term: Term) -> Iterator[Signal]:
    """What weighs experts where a product of matrices sums over them."""
    for v in term.args if term.op in CONTRACTIONS else ():
        many, result = len(experts(v)), term.shape or ()
        held = (v.shape or ()).count(many) == result.count(many) + 1
        for f in term.args if many > 1 and held else ():
            if f is not v and many in (f.shape or ()) and not any(reaches(f, m) for m in experts(v)):
                yield Signal(f, *core(f))
