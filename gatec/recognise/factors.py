"""A product taken apart: what each factor is, and which of them decides how much of the others passes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gatec.match import Term
from gatec.match.written import without
from gatec.recognise.look import (
    REDUCTIONS,
    below,
    fixed,
    layer_of,
    layered,
    learned,
    parameter,
    peeled,
    pointwise_of,
    whole,
)
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import Signal, signal

OVER = {"recip", "rsqrt"}


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
        kept = [f for f in rest if signal(f) is not None or f in self.rows or not self._scales(f)]
        if inner is None and len(kept) == 1 and (self.broadcast(kept[0]) or _compares(kept[0])):
            free = [f for f in rest if f not in kept and not self._statistic(f)]
            kept += [f for f in free if learned(f)]  # learned tokens, gated; weights, kept or dropped
        return (*([inner.term] if inner is not None else []), *kept)

    def _inner(self) -> list[Hit]:
        found = {id(h): h for f in set(self.term.args) for h in self.scene.inside.get(f, ())}
        return [h for h in found.values() if without(self.term.args, h.term.args)]

    def _scales(self, f: Term) -> bool:
        return peeled(f).op in OVER or (fixed(f) and layer_of(f) is None) or self._statistic(f)

    @property
    def normalises(self) -> bool:
        """Divided by a statistic of another factor: a norm, written out."""
        return any(peeled(f).op in OVER and self._statistic(f) for f in self.term.args)

    @property
    def dot(self) -> bool:
        """Only summed up: a dot product."""
        readers = self.scene.readers.get(self.term, [])
        return bool(readers) and all(r.op == "sum" for r in readers)

    @cached_property
    def rows(self) -> tuple[Term, ...]:
        """Learned numbers, one for each weight of a distribution that goes on to weigh something with them."""
        if self.dot or not any((s := signal(f)) is not None and s.distributes for f in self.term.args):
            return ()
        size = (self.term.shape or (1,))[-1]
        return tuple(f for f in self.term.args if parameter(whole(f)) and (f.shape or (1,))[-1] == size != 1)

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
        """y * sigmoid(w y) is an activation of y, and so is sign(y) * sqrt(|y|)."""
        others = tuple(whole(f) for f in self.factors if f is not s.factor)
        if s.factor.op == "call:sign":
            return all(pointwise_of(o, s.factor.args) for o in others)
        return not s.decides and not s.fixed and all(pointwise_of(a, (*others, *self.factors)) for a in s.core.args) \
            and s.core not in others  # fmt: skip

    @cached_property
    def values(self) -> tuple[Term, ...]:
        gate = self.gate.factor if self.gate is not None else None
        return tuple(f for f in self.factors if f is not gate)


def _compares(f: Term) -> bool:
    return (found := signal(f)) is not None and found.compares
