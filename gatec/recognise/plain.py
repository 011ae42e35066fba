"""Products without a signal in them: kinds that show in what the two factors are made of."""

from __future__ import annotations

from collections.abc import Callable

from gatec.match import Term
from gatec.recognise.factors import Product
from gatec.recognise.look import (
    POINTWISE,
    below,
    fixed,
    layer_of,
    layered,
    mixes_positions,
    norm,
    parameter,
    peeled,
    source,
    wide,
)
from gatec.recognise.scene import Hit


def scales_by_condition(p: Product) -> bool:
    """Something normalised times one plus what a layer makes of something else."""
    pairs = [(f, o) for f in p.factors for o in p.factors if f is not o]
    return any(_one_plus(f) and (p.normalises or norm(peeled(o))) and source(f) is not source(o) for f, o in pairs)


def _one_plus(f: Term) -> bool:
    """A layer, and one or the norm's own weight."""
    f = peeled(f)
    made = [peeled(a) for a in f.args if not fixed(a)] if f.op == "add" else []
    return len(made) == 1 and layered(made[0]) and (f.data != 0 or len(f.args) > 1)


def meets_neighbours(p: Product) -> bool:
    """One factor is a layer along positions, or sees farther than the other, and both have numbers for each."""
    if any(map(p.broadcast, p.factors)):
        return False
    made = [layer_of(f) for f in p.factors]
    plain = [m for m, f in zip(made, p.factors, strict=True) if peeled(f).op != "mul" or peeled(f) not in p.scene.used]
    if any(m is not None and mixes_positions(m) for m in plain):
        return True  # a product that was found has layers of its own
    if any(m is not None and _sees(f) for m, f in zip(made, p.factors, strict=True)) and not all(map(_sees, p.factors)):
        return True
    near, far = sorted(_sights(p).values()) if None not in made else (0, 0)
    return near < far


def _sights(p: Product) -> dict[Term, int]:
    """Through how many convolutions with neighbours each factor goes at most, from where they part."""
    first, second = (set(below((f,), 200, through=True)) for f in p.factors)
    owned = (first - second, second - first)
    return {f: _sight(f, own, {}) for f, own in zip(p.factors, owned, strict=True)}


def _sight(f: Term, own: set[Term], known: dict[Term, int]) -> int:
    if f not in own or not (f.op in POINTWISE or layered(f) or norm(f)):
        return 0
    if f not in known:
        known[f] = wide(f) + max((_sight(a, own, known) for a in f.args), default=0)
    return known[f]


def _sees(f: Term, depth: int = 4) -> bool:
    """Whether a value comes out of convolutions one of which is wide, with nothing but numbers in between."""
    f = peeled(f)
    while f.op in ("add", "mul") and len(f.args) == 1:
        f = peeled(f.args[0])
    return f.op == "conv" and (wide(f) or (depth > 0 and _sees(f.args[0], depth - 1)))


def bilinear(p: Product) -> bool:
    """Two layers multiplied, of one input or of two."""
    first, second = (peeled(f) for f in p.factors)
    return first is not second and layered(first) and layered(second) and "embedding" not in (first.op, second.op) \
        and not p.dot  # fmt: skip


def by_coordinates(p: Product) -> bool:
    """A value times what layers make of numbers alone: a kernel, a window or a profile over coordinates."""
    return sum(map(_profile, p.factors)) == 1


def _profile(f: Term) -> bool:
    return fixed(f) and layer_of(f) is not None


PLAIN: tuple[tuple[str, Callable[[Product], bool]], ...] = (
    ("feature", by_coordinates),
    ("modulation", scales_by_condition),
    ("token-mixing", meets_neighbours),
    ("glu", bilinear),
)


def scaled(p: Product) -> Hit | None:
    """What a layer makes, under a learned scale that is one plus something; a norm has its own."""
    open_yet = [f for f in p.term.args if f not in p.found]
    scale = next((f for f in open_yet if f.op == "add" and f.data == 1 and all(map(_learned, f.args))), None)
    rest = [f for f in p.term.args if f is not scale]
    if scale is None or len(rest) != 1 or not layered(peeled(rest[0])):
        return None
    single = all(s == 1 for s in p.scene.sizes(scale, p.term)[0])
    return Hit("scalar" if single else "feature", "learned", p.term, (scale,), tuple(rest))


def _learned(f: Term) -> bool:
    return parameter(peeled(f))


def weight(p: Product, f: Term) -> tuple[bool, bool, int]:
    """Of two factors without a signal the one gates that is the same for every input, that is one plus something, or that
    sees other positions."""
    made = layer_of(f)
    return _profile(f) or _one_plus(f), made is not None and (mixes_positions(made) or _sees(f)), _sights(p)[f]
