"""Products with a signal in them: a table of kinds that is tried in order. What has none is asked elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

from gatec.match import Term
from gatec.match.written import complement
from gatec.recognise.factors import Product
from gatec.recognise.look import (
    ACTIVATIONS,
    CONTRACTIONS,
    FIXED,
    JOINS,
    REDUCTIONS,
    attends,
    attention,
    below,
    fixed,
    layer_of,
    layered,
    learned,
    mixes_positions,
    norm,
    peeled,
    reaches,
    source,
    whole,
    wide,
)
from gatec.recognise.plain import PLAIN, scaled, weight
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import DECISIONS, Signal, core, signal

NOTHING = {"log", "log_softmax", "logsigmoid"}  # entropies and losses
NARROW = {"channel", "spatial", "feature", "scalar"}


def nothing(p: Product) -> bool:
    """Attention weights, expected values, entropies; all pairs of two values' numbers; numbers alone."""
    g = p.gate
    assert g is not None
    if not g.bounded and all(map(p.broadcast, p.factors)):
        return True
    if any(peeled(v).op in NOTHING for v in p.term.args) or all(_plain(p, v, g) and v not in p.rows for v in p.values):
        return True
    if all(map(_chance, p.factors)) and any(complement(peeled(f)) for f in p.factors):
        return True  # (1 - a) (1 - b): how likely it is that none of them stops
    if g.decides and any(attends(v) for v in p.values):
        return True  # the mask of attention weights
    return attends(g.core) or (g.core.op == "softmax" and p.broadcast(g.factor) > 0)


def _chance(t: Term) -> bool:
    """A number between zero and one, or one less it."""
    t = peeled(t)
    if t.op == "clamp" and t.data[0] is not None and t.data[0] >= 0:
        return t.data[1] == 1 or _chance(t.args[0])
    less = complement(t)
    return t.op in ("sigmoid", "softmax") or (less is not None and all(map(_chance, less)))


def _plain(p: Product, value: Term, gate: Signal) -> bool:
    """Numbers; and learned ones, where they are weighed rather than gated by what an input says or by a comparison."""
    weighs = (gate.fixed and not gate.compares) or not gate.bounded or gate.core.op == "softmax"
    numbers = weighs or not learned(value)
    return (fixed(value) and numbers) or peeled(value).op in FIXED or p.scene.truth(value) or _masks(value)


def _masks(value: Term) -> bool:
    """Ones and zeros that nobody learned: padding, a prefix."""
    return core(value)[0].op in DECISIONS and not learned(value)


def confident(p: Product) -> bool:
    return p.gate is not None and p.gate.decides and confidence(p.gate.factor)


def confidence(test: Term) -> bool:
    """Whether a decision asks how sure a softmax is: its largest, its entropy."""
    inside = list(below((test,), 32))
    return any(t.op == "softmax" for t in inside) and any(
        t.op in ("amax", "log", "call:max", "sum", "call:topk") for t in inside
    )


def decides(p: Product) -> bool:
    return p.gate is not None and p.gate.decides


def leaves_attention(p: Product) -> bool:
    return any(attention(v) for v in p.values)


def is_scalar(p: Product) -> bool:
    assert p.gate is not None
    return p.gate.fixed and all(s == 1 for s in p.scene.sizes(p.gate.factor, p.term)[0])


def is_feature(p: Product) -> bool:
    return p.gate is not None and p.gate.fixed


def per_channel(p: Product) -> bool:
    """One number per channel: what is left of the sizes is what the signal's last layer made."""
    assert p.gate is not None
    g, v = p.scene.sizes(p.gate.factor, p.term)
    left, gone = _dims(g, v)
    if len(left) != 1 or len(v) < 3 or not p.gate.bounded:
        return False
    if len(v) > 3:
        return len(gone) > 1 or (left == [1] and math.prod(v[2:]) == 1 and _pools(p.gate.core))
    made = layer_of(p.gate.core) if gone else None
    if made is not None and made.op == "linear":
        return made.data.out == g[left[0]] and _pools(p.gate.core)
    return gone == [2] and _pools(p.gate.core)


def _dims(g: tuple[int, ...], v: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The dimensions behind the first that a signal has, and those along which it is repeated."""
    pairs = list(enumerate(zip(g, v, strict=False)))[1:]
    return [i for i, (a, b) in pairs if a == b != 1], [i for i, (a, b) in pairs if a == 1 != b]


def _pools(value: Term) -> bool:
    return any(t.op in REDUCTIONS or "pool" in t.op.lower() for t in below((value,), 64, through=True))


def per_position(p: Product) -> bool:
    """One number per position: of the sizes only the channels are gone."""
    assert p.gate is not None
    g, v = p.scene.sizes(p.gate.factor, p.term)
    left, gone = _dims(g, v)
    made = layer_of(p.gate.core)
    narrow = len(gone) == 1 and (len(left) == len(v) - 2)
    return narrow and p.gate.bounded and (len(v) != 3 or gone == [2] or made is None or made.op == "conv")


def conditioned(p: Product) -> bool:
    """A signal from elsewhere, the same at every position; of two signals neither is the condition."""
    assert p.gate is not None
    g = p.gate.factor
    alone = not any((other := signal(v)) is not None and other.bounded for v in p.values)
    return alone and p.gate.bounded and p.broadcast(g) > 0 and not any(reaches(g, peeled(v), 64) for v in p.values)


def mixes(p: Product) -> bool:
    """One factor comes out of a layer along positions, through no more than layers, or of wide convolutions of the other."""
    return any(map(_along, p.factors)) or any(_surroundings(f, o) for f in p.factors for o in p.factors if f is not o)


def _along(f: Term, depth: int = 3) -> bool:
    made = layer_of(f)
    if made is None or mixes_positions(made):
        return made is not None
    if depth <= 0 or not layered(made) or not made.args:
        return False
    held = peeled(made.args[0])
    return (layered(held) or held.op in JOINS) and _along(held, depth - 1)


def _surroundings(f: Term, of: Term) -> bool:
    """Whether convolutions alone, some of them wide, make a factor of the other one; not a network with attention."""
    value = peeled(of)
    inside = [t for t in below((f,), 64, through=True, stop=(value,)) if t is not value]
    near = any(wide(t) for t in inside) and not any(t.op in CONTRACTIONS for t in inside)
    return near and reaches(f, value, 64)


def two_branches(p: Product) -> bool:
    """Both come out of layers, and the signal is not made from the very value that it gates."""
    assert p.gate is not None
    seen = {source(p.gate.factor), *below((p.gate.factor,))}
    free = [v for v in p.values if not seen & set(_inside(v)) and not _of_itself(p, v)]
    apart = [v for v in free if layer_of(v) is not None or _read_out(p, v)]
    return layer_of(p.gate.core) is not None and bool(apart)


def _read_out(p: Product, value: Term) -> bool:
    """Whether a value is what a recurrence returns."""
    states = {t for h in p.scene.hits if h.kind == "recurrence" for t in (h.term, *h.parts)}
    return bool(states) and any(t in states for t in below((value,), 1000))


def _of_itself(p: Product, value: Term) -> bool:
    """Whether layers, one after the other, make the signal from the value."""
    assert p.gate is not None
    queue, wanted = list(below((p.gate.factor,))), set(_inside(value))
    for t in queue:
        line = layered(t) or sum(not fixed(a) for a in t.args) < 2 or t.op in JOINS
        queue.extend(a for a in t.args if line and len(queue) < 64)
    return any(t in wanted for t in queue)


def _inside(value: Term) -> list[Term]:
    """A value, and what activations and norms were put on."""
    found = [value, whole(value)]
    while (found[-1].op in ACTIVATIONS or norm(found[-1])) and found[-1].args:
        found.append(whole(found[-1].args[0]))
    return found


SIGNALLED: tuple[tuple[str, Callable[[Product], bool]], ...] = (
    ("", nothing),
    ("exit", confident),
    ("hard", decides),
    ("attention-output", leaves_attention),
    ("scalar", is_scalar),
    ("feature", is_feature),
    ("channel", per_channel),
    ("spatial", per_position),
    ("modulation", conditioned),
    ("token-mixing", mixes),
    ("glu", two_branches),
    ("product", lambda p: True),
)


def product(scene: Scene, term: Term) -> list[Hit]:
    """The gate that one product is; several, where more than one signal is repeated along some dimensions."""
    found = [hit for hit in [_gate(Product(scene, term))] if hit is not None]
    while found and found[-1].kind in NARROW:
        hit = _gate(Product(scene, term, tuple(g for h in found for g in h.gates)))
        if hit is None or hit.kind not in NARROW:
            break
        found.append(hit)
    return found


def _gate(p: Product) -> Hit | None:
    scene, term = p.scene, p.term
    if all(term.args.count(f) % 2 == 0 for f in term.args):
        return None  # a square
    gate = p.gate
    if gate is None:
        kind = next((k for k, test in PLAIN if test(p)), "") if len(set(p.factors)) == len(p.factors) == 2 else ""
        if not kind:
            return scaled(p)
        first, second = sorted(p.factors, key=lambda f: weight(p, f), reverse=True)
        return Hit(kind, "identity" if kind == "glu" else "linear", term, (first,), (second,))
    if gate.key in scene.claimed:
        return None
    kind = next(k for k, test in SIGNALLED if test(p))
    return Hit(kind, gate.name, term, (gate.factor,), p.values) if kind else None
