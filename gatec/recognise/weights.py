"""Weights of layers that are mixed: task vectors, bases or kernels, each under a coefficient of its own."""

from __future__ import annotations

import math

from gatec.match import Term
from gatec.recognise.look import CONTRACTIONS, below, fixed, learned, parameter, peeled
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import core, signal

ADAPTED = {"sigmoid", "tanh", "softmax", "clamp", "relu", "softplus"}


def merged(scene: Scene, term: Term, products: list[Term]) -> Hit | None:
    """base + c[0] a + c[1] b, nothing of which depends on the input."""
    if not all(fixed(a) for a in term.args):
        return None
    found = [(p, c) for p in products for c in p.args if _scales(scene, c, p)]
    if len({c for _, c in found}) < 2:
        return None
    values = tuple(f for p, c in found for f in p.args if f is not c)
    return Hit("mixture", _named(found[0][1]), term, tuple(c for _, c in found), values, tuple(p for p, _ in found))


def stacked(scene: Scene) -> None:
    """A learned row of numbers against tensors that are stored side by side: sum_k c[k] a[k]."""
    for term in (t for t in scene.terms if t not in scene.used):
        product = term.args[0] if term.op == "sum" else term
        if product.op != "mul" and product.op not in CONTRACTIONS:
            continue
        if len(product.args) != 2 or not all(map(fixed, product.args)):
            continue
        hit = next((h for c in product.args if (h := _stack(scene, term, product, c)) is not None), None)
        if hit is not None:
            scene.take(hit)


def _stack(scene: Scene, term: Term, product: Term, c: Term) -> Hit | None:
    """The row is one number per tensor; the tensors have dimensions of their own."""
    (held,) = (f for f in product.args if f is not c) if product.args[0] is not product.args[1] else (c,)
    several = max(s for s in (c.shape or (1,)))
    row = math.prod(c.shape or ()) == several and peeled(held).op == "param" and held is not c
    sizes = peeled(held).shape or ()
    if not row or not _coefficient(c) or several not in sizes or len(sizes) < (2 if product.op == "mul" else 3):
        return None
    if product.op == "mul" and (term is product or len(term.data[0]) != 1 or not scene.repeats(c, product)):
        return None
    return Hit("mixture", _named(c), term, (c,), (held,), (product,))


def masked(scene: Scene) -> None:
    """A stored weight under a mask with a learned number for each of its entries, or for each of its rows."""
    for term in (t for t in scene.having("mul") if t not in scene.used and scene.maximal(t)):
        mask = next((f for f in term.args if _mask(f, term)), None)
        held = tuple(f for f in term.args if f is not mask and peeled(f).op == "param")
        rest = [f for f in term.args if f is not mask and f not in held]
        if mask is not None and len(held) == 1 and all(f.op == "recip" and fixed(f) for f in rest):
            scene.take(Hit("feature", _named(mask), term, (mask,), held))


def _mask(f: Term, product: Term) -> bool:
    found, sizes, whole = signal(f), peeled(f).shape or (), product.shape or ()
    rows = len(whole) > 1 and f.shape == (whole[0], *(1 for _ in whole[1:]))
    own = rows or (len(sizes) > 1 and sizes == whole[-len(sizes) :])
    return own and found is not None and found.bounded and not found.decides and found.fixed and learned(f)


def _scales(scene: Scene, c: Term, product: Term) -> bool:
    """A coefficient that is repeated over what it scales, or that alone is learned."""
    others = [f for f in product.args if f is not c]
    stored = bool(others) and all(peeled(f).op == "param" for f in others)
    return stored and _coefficient(c) and (scene.repeats(c, product) or not any(map(learned, others)))


def _coefficient(c: Term) -> bool:
    return fixed(c) and any(map(parameter, below((c,), 24)))


def _named(c: Term) -> str:
    found = core(c)[0].op
    return found if found in ADAPTED else "learned"
