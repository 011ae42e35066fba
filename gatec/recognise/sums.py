"""Sums with gated summands: blends, streams under weights, modulation, scaled branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gatec.match import Term
from gatec.match.written import complement
from gatec.recognise.look import below, fixed, layer_of, layered, norm, parameter, peeled, raw, reaches, source, whole
from gatec.recognise.products import confidence
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import Signal, signal
from gatec.recognise.weights import merged


@dataclass
class Sum:
    """A sum, and those of its products that no earlier sum had."""

    scene: Scene
    term: Term
    products: list[Term]

    def beside(self, product: Term) -> list[Term]:
        return [a for a in self.term.args if whole(a) is not product and a.op != "const"]


def blend(s: Sum) -> Hit | None:
    """g a + (1 - g) b."""
    for p in s.products:
        for g, gate in ((f, found) for f in p.args if (found := signal(f) or _mass(f)) is not None and found.bounded):
            for q in s.products:
                one_less = next((f for f in q.args if complement(peeled(f)) == (g,) or _opposite(f, g)), None)
                if q is p or one_less is None:
                    continue
                kind = "exit" if gate.decides and confidence(g) else "hard" if gate.decides else "highway"
                values = tuple(f for f in (*p.args, *q.args) if f is not g and f is not one_less)
                return Hit(kind, gate.name, s.term, (g,), values, (p, q))
    return None


def _mass(f: Term) -> Signal | None:
    """The part of a softmax that falls on some of its entries."""
    f = peeled(f)
    inner = f.args[0] if f.op == "sum" else f
    some = inner.args if inner.op == "mul" and inner.data == 1 else (peeled(inner),) if inner.op == "part" else ()
    shares = [a for a in some if a.op == "softmax" and a.data in f.data[0]]
    return (
        Signal(f, shares[0], False)
        if len(shares) == 1 and all(a in shares or fixed(a) or raw(a) for a in some)
        else None
    )


def _opposite(f: Term, g: Term) -> bool:
    """b >= a beside a > b."""
    return {f.op, g.op} == {"gt", "ge"} and f.args == g.args[::-1]


def streams(s: Sum) -> Hit | None:
    """At least two values, each under a sigmoid of its own, or under its share of a row of learned numbers."""
    gated = [(p, g) for p in s.products if (g := _own(p)) is not None]
    keys = {g.factor for _, g in gated}
    if len(gated) < 2 or len(keys) < 2 or any(g.key in s.scene.claimed for _, g in gated):
        return _shares(s)
    if any(reaches(p, q, 300) for p, _ in gated for q, _ in gated if p is not q):
        return None  # one after the other: two residual branches
    if len({tuple(f for f in p.args if f is not g.factor) for p, g in gated}) == 1:
        return _shares(s)  # several gates of one value
    values = tuple(f for p, g in gated for f in p.args if f is not g.factor)
    return Hit(
        "mixture", gated[0][1].name, s.term, tuple(g.factor for _, g in gated), values, tuple(p for p, _ in gated)
    )


def _own(product: Term) -> Signal | None:
    found = [
        g
        for f in product.args
        if (g := signal(f)) is not None and g.core.op in ("sigmoid", "hardsigmoid") and not g.fixed
    ]
    return found[0] if len(product.args) > 1 and found and not found[0].chosen else None


def _shares(s: Sum) -> Hit | None:
    """w[0] a + w[1] b of one learned row."""
    rows: dict[Term, list[tuple[Term, Term]]] = {}
    for p in s.products:
        for f in p.args:
            if f.op in ("view", "part") and fixed(f) and (row := _row(f)) is not None and not _plain(p, f):
                rows.setdefault(row, []).append((p, f))
    for found in rows.values():
        if len({f for _, f in found}) > 1:
            values = tuple(f for p, g in found for f in p.args if f is not g and not fixed(f))
            return Hit("mixture", "learned", s.term, tuple(g for _, g in found), values, tuple(p for p, _ in found))
    return _levels(s)


def _levels(s: Sum) -> Hit | None:
    """g[0] a + g[1] b, where one layer makes a number per position for each stream."""
    made: dict[str, list[tuple[Term, Term]]] = {}
    for p in s.products:
        for f in p.args:
            layer = peeled(f)
            if layered(layer) and len(p.args) > 1 and s.scene.repeats(f, p):
                made.setdefault(layer.data.weight, []).append((p, f))
    found = next((uses for uses in made.values() if len({f for _, f in uses}) > 1), [])
    if not found or any(reaches(p, q, 300) for p, _ in found for q, _ in found if p is not q):
        return None
    values = tuple(o for p, g in found for o in p.args if o is not g)
    return Hit("mixture", "linear", s.term, tuple(g for _, g in found), values, tuple(p for p, _ in found))


def _row(f: Term) -> Term | None:
    """The learned numbers that a factor is one of."""
    while f.op in ("view", "part"):
        f = f.args[0]
    return f if any(parameter(t) for t in below((f,), 8)) else None


def _plain(product: Term, f: Term) -> bool:
    return all(fixed(o) for o in product.args if o is not f)


def weights(s: Sum) -> Hit | None:
    return merged(s.scene, s.term, s.products)


def modulation(s: Sum) -> Hit | None:
    """gamma(c) v + beta(c): scale and shift come out of layers of one condition."""
    shifts = [(o, source(o)) for o in s.term.args if o.op != "mul" and layer_of(o) is not None]
    for p in s.products:
        for f in p.args:
            from_where = source(f) if _affine(f) else None
            rest = tuple(o for o in p.args if o is not f and not fixed(o))
            shift = next((o for o, c in shifts if c is from_where and _affine(o)), None)
            if from_where is not None and shift is not None and rest and all(source(o) is not from_where for o in rest):
                return Hit("modulation", "linear", s.term, (f,), rest, (p,))
    return None


def _affine(f: Term) -> bool:
    """A layer, or a number or parameter plus a layer, without an activation."""
    f = peeled(f)
    while f.op == "add" and len(inner := [peeled(a) for a in f.args if not fixed(a)]) == 1:
        f = inner[0]
    return layered(f) and f.op != "embedding"


def stored_branch(s: Sum) -> Hit | None:
    """x + gate * v: a stored vector, added as far as a number for each position says."""
    for p in s.products:
        for f in p.args:
            held = [o for o in p.args if o is not f]
            gate = signal(f) if len(held) == 1 and peeled(held[0]).op == "param" else None
            opened = gate is not None and gate.core.op in ("sigmoid", "hardsigmoid") and not gate.fixed
            if gate is not None and opened and s.scene.repeats(f, p) and any(not fixed(o) for o in s.beside(p)):
                return Hit("spatial", gate.name, s.term, (f,), (held[0],), (p,))
    return None


def scaled_branch(s: Sum) -> Hit | None:
    """x + scale * branch with a learned scale, or with one that a layer makes of a condition."""
    for p in s.products:
        scales = tuple(f for f in p.args if _scale(f))
        branch = tuple(f for f in p.args if f not in scales and not (scales and _number(f)))
        if not s.beside(p) or s.term.data or len(branch) != 1 or norm(peeled(branch[0])) or raw(branch[0]):
            continue
        if any(reaches(peeled(o), p) for o in s.beside(p)):
            continue  # what is gated is the stream itself
        if _narrow(branch[0], p):
            continue  # a number along a learned direction
        bounded = next((g for f in scales if (g := signal(f)) is not None and g.bounded), None)
        stream = any(reaches(branch[0], peeled(o)) for o in s.beside(p) if not fixed(o))
        if scales and (stream or bounded is not None):
            name = bounded.name if bounded is not None else "learned"
            return Hit("residual-scale", name if name != "recip" else "learned", s.term, scales, branch, (p,))
    return _conditioned_branch(s)


def _scale(f: Term) -> bool:
    """Learned numbers, or a gate made of those that an input asks for."""
    if fixed(f):
        return any(map(parameter, below((f,), 16)))
    gate = signal(f)
    return gate is not None and gate.bounded and gate.fixed


def _number(f: Term) -> bool:
    """One number that the caller gives, or one for each sample."""
    sizes = f.shape or ()
    return raw(f) and all(s == 1 for s in (sizes[1:] if len(sizes) > 1 else sizes))


def _narrow(branch: Term, product: Term) -> bool:
    pairs = zip((branch.shape or ())[::-1], (product.shape or ())[::-1], strict=False)
    return any(a == 1 != b for a, b in pairs)


def _conditioned_branch(s: Sum) -> Hit | None:
    """x + gate(c) * branch(x), one row of numbers for all positions: adaLN-zero."""
    for p in s.products:
        for f in p.args:
            rest = tuple(o for o in p.args if o is not f and not fixed(o))
            narrow = len(rest) == 1 and s.scene.repeats(f, p) and not s.scene.repeats(rest[0], p)
            stream = any(whole(o).op != "mul" for o in s.beside(p))
            if not (narrow and stream):
                continue
            made = (
                _affine(f) and peeled(f).op != "add" and source(rest[0]) is not source(f) and not _crosses(f, rest[0])
            )
            if made or _elsewhere(s, p, f, rest[0]):
                gate = signal(f)
                return Hit("residual-scale", gate.name if gate is not None else "linear", s.term, (f,), rest, (p,))
    return None


def _crosses(f: Term, value: Term) -> bool:
    """Whether a number is made of the very value that it scales, as where features are crossed with each other."""
    return reaches(f, peeled(value), 300)


def _elsewhere(s: Sum, product: Term, f: Term, branch: Term) -> bool:
    """A bounded signal that knows nothing of the stream, on a branch of it."""
    gate, streams = signal(f), [peeled(o) for o in s.beside(product) if not fixed(o)]
    bounded = gate is not None and gate.bounded and not gate.chosen and gate.core.op != "softmax"
    return bounded and any(reaches(branch, o) for o in streams) and not any(reaches(f, o) for o in streams)


SUMS: tuple[Callable[[Sum], Hit | None], ...] = (blend, streams, weights, modulation, stored_branch, scaled_branch)


def sums(scene: Scene) -> None:
    """Every gate that shows in a sum. A product belongs to the first sum that takes it up; later ones only carry it on."""
    seen: set[Term] = set()
    for term in scene.sums:
        fresh = [p for a in term.args if (p := whole(a)).op == "mul" and p not in seen]
        seen.update(fresh)
        while free := [a for a in fresh if a not in scene.used]:
            found = next((hit for rule in SUMS if (hit := rule(Sum(scene, term, free))) is not None), None)
            if found is None or term in scene.used:
                break
            fresh = [a for a in free if a not in found.parts]
            scene.take(found)
            scene.used.discard(term)
            scene.used.update(found.parts)
