"""Products with a signal in them: what each factor is, and a table of kinds that is tried in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gatec.match import Term
from gatec.match.written import complement, without
from gatec.recognise.look import (
    ACTIVATIONS,
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
    parameter,
    peeled,
    pointwise_of,
    reaches,
    source,
    whole,
    wide,
)
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import DECISIONS, Signal, core, signal

OVER = {"recip", "rsqrt"}
NOTHING = {"log", "log_softmax", "logsigmoid"}  # entropies and losses


@dataclass
class Product:
    """A product taken apart: the signal, what it acts on, the inner product that was found before, signals found already."""

    scene: Scene
    term: Term
    found: tuple[Term, ...] = ()

    @cached_property
    def factors(self) -> tuple[Term, ...]:
        """Without the factors of an inner find, which stands for them; without what only scales."""
        inner = max(self._inner(), key=lambda h: len(h.term.args), default=None)
        rest = list(self.term.args) if inner is None else without(self.term.args, inner.term.args) or []
        rest = [f for f in rest if f not in self.found]
        kept = [
            f for f in rest if signal(f) is not None or not (peeled(f).op in OVER or fixed(f) or self._statistic(f))
        ]
        if inner is None and len(kept) == 1 and (self.broadcast(kept[0]) or _compares(kept[0])):
            free = [f for f in rest if f not in kept and not self._statistic(f)]
            kept += [f for f in free if learned(f)]  # learned tokens, gated; weights, kept or dropped
        return (*([inner.term] if inner is not None else []), *kept)

    def _inner(self) -> list[Hit]:
        found = {id(h): h for f in set(self.term.args) for h in self.scene.inside.get(f, ())}
        return [h for h in found.values() if without(self.term.args, h.term.args)]

    def _statistic(self, f: Term) -> bool:
        """A reduction of another factor: the product normalises."""
        others = {t for o in self.term.args if o is not f for t in (o, whole(o))}
        inside = list(below((f,), 24, stop=others))
        own = [t for t in inside if t not in others]
        return (
            any(t.op in REDUCTIONS for t in own)
            and len(own) < len(inside)
            and not any(layered(t) or parameter(t) for t in own)
        )

    @cached_property
    def gate(self) -> Signal | None:
        """Of several signals the bounded one gates, the narrow one before the wide one."""
        found = [s for f in self.factors if f is not self.inner and (s := signal(f)) is not None]
        found = [s for s in found if any(o is not s.factor for o in self.factors) and not self._activates(s)]
        return min(
            found, key=lambda s: (not s.chosen, not s.decides, not s.bounded, -self.broadcast(s.factor)), default=None
        )

    @property
    def inner(self) -> Term | None:
        return self.factors[0] if self.factors and self.factors[0] not in self.term.args else None

    def broadcast(self, factor: Term) -> int:
        """How many dimensions a factor is repeated along."""
        g, v = self.scene.sizes(factor, self.term)
        return sum(a == 1 != b for a, b in zip(g, v, strict=False))

    def _activates(self, s: Signal) -> bool:
        """y * sigmoid(w y) is an activation of y."""
        others = tuple(whole(f) for f in self.factors if f is not s.factor)
        return not s.decides and not s.fixed and all(pointwise_of(a, (*others, *self.factors)) for a in s.core.args) \
            and s.core not in others  # fmt: skip

    @cached_property
    def values(self) -> tuple[Term, ...]:
        gate = self.gate.factor if self.gate is not None else None
        return tuple(f for f in self.factors if f is not gate)


def _compares(f: Term) -> bool:
    return (found := signal(f)) is not None and found.compares


# -- what a signal does -----------------------------------------------------------------------------------------------


def nothing(p: Product) -> bool:
    """Attention weights, expected values, entropies; numbers alone."""
    g = p.gate
    assert g is not None
    if any(peeled(v).op in NOTHING for v in p.term.args) or all(_plain(v, g) for v in p.values):
        return True
    if all(map(_chance, p.factors)) and any(complement(peeled(f)) for f in p.factors):
        return True  # (1 - a) (1 - b): how likely it is that none of them stops
    return g.core.op == "softmax" and (attends(g.core) or p.broadcast(g.factor) > 0)


def _chance(t: Term) -> bool:
    """A number between zero and one, or one less it."""
    t = peeled(t)
    if t.op == "clamp" and t.data[0] is not None and t.data[0] >= 0:
        return t.data[1] == 1 or _chance(t.args[0])
    less = complement(t)
    return t.op in ("sigmoid", "softmax") or (less is not None and all(map(_chance, less)))


def _plain(value: Term, gate: Signal) -> bool:
    """Numbers; and learned ones, where they are weighed rather than gated by what an input says or by a comparison."""
    weighs = (gate.fixed and not gate.compares) or gate.core.op == "softmax"
    numbers = weighs or not learned(value)
    return (fixed(value) and numbers) or peeled(value).op in FIXED or _masks(value)


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
    if not gone or len(left) != 1 or len(v) < 3 or not p.gate.bounded:
        return False
    if len(v) > 3:
        return len(gone) > 1
    made = layer_of(p.gate.core)
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
    """A signal from elsewhere, the same at every position."""
    assert p.gate is not None
    g = p.gate.factor
    return p.gate.bounded and p.broadcast(g) > 0 and not any(reaches(g, peeled(v), 64) for v in p.values)


def mixes(p: Product) -> bool:
    """One factor is a layer along positions, or wide convolutions of the other one."""
    along = any((made := layer_of(f)) is not None and mixes_positions(made) for f in p.factors)
    return along or any(_surroundings(f, o) for f in p.factors for o in p.factors if f is not o)


def _surroundings(f: Term, of: Term) -> bool:
    value = peeled(of)
    inside = list(below((f,), 64, through=True, stop=(value,)))
    return value in inside and any(wide(t) for t in inside if t is not value)


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

# -- products without a signal ----------------------------------------------------------------------------------------


def scales_by_condition(p: Product) -> bool:
    """Something normalised times one plus what a layer makes of something else."""
    pairs = [(f, o) for f in p.factors for o in p.factors if f is not o]
    return any(_one_plus(f) and norm(peeled(o)) and source(f) is not source(o) for f, o in pairs)


def _one_plus(f: Term) -> bool:
    f = peeled(f)
    return f.op == "add" and len(f.args) == 1 and f.data != 0 and layered(peeled(f.args[0]))


def meets_neighbours(p: Product) -> bool:
    made = [layer_of(f) for f in p.factors]
    if any(m is not None and mixes_positions(m) for m in made):
        return True
    return any(m is not None and _sees(f) for m, f in zip(made, p.factors, strict=True)) and not all(
        map(_sees, p.factors)
    )


def _sees(f: Term, depth: int = 4) -> bool:
    """Whether a value comes out of convolutions one of which is wide, with nothing but numbers in between."""
    f = peeled(f)
    while f.op in ("add", "mul") and len(f.args) == 1:
        f = peeled(f.args[0])
    return f.op == "conv" and (wide(f) or (depth > 0 and _sees(f.args[0], depth - 1)))


def bilinear(p: Product) -> bool:
    """Two layers of one input multiplied."""
    first, second = (peeled(f) for f in p.factors)
    return first is not second and layered(first) and layered(second) and "embedding" not in (first.op, second.op) \
        and peeled(first.args[0]) is peeled(second.args[0]) and not _dot(p)  # fmt: skip


def _dot(p: Product) -> bool:
    """Only summed up: a dot product."""
    readers = p.scene.readers.get(p.term, [])
    return bool(readers) and all(r.op == "sum" for r in readers)


PLAIN: tuple[tuple[str, Callable[[Product], bool]], ...] = (
    ("modulation", scales_by_condition),
    ("token-mixing", meets_neighbours),
    ("glu", bilinear),
)


NARROW = {"channel", "spatial", "feature", "scalar"}


def _weight(f: Term) -> tuple[bool, bool]:
    """Of two factors without a signal the one gates that is one plus something, or that sees other positions."""
    made = layer_of(f)
    return _one_plus(f), made is not None and (mixes_positions(made) or _sees(f))


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
            return None
        first, second = sorted(p.factors, key=_weight, reverse=True)
        return Hit(kind, "identity" if kind == "glu" else "linear", term, (first,), (second,))
    if gate.key in scene.claimed:
        return None
    kind = next(k for k, test in SIGNALLED if test(p))
    return Hit(kind, gate.name, term, (gate.factor,), p.values) if kind else None
