"""One step of a state: what lets it go, what it is, what enters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gatec.match import Term
from gatec.match.written import complement, number
from gatec.recognise.look import below, layered, learned, peeled
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import DECISIONS, Signal, core, signal

DECAYS = {"sigmoid", "hardsigmoid", "exp"}


@dataclass(frozen=True)
class Step:
    """term = decay * state + the rest."""

    term: Term
    product: Term
    decay: Term
    state: Term

    @property
    def inner(self) -> Term:
        return fading(self.decay) or self.decay

    @property
    def key(self) -> object:
        return Signal(self.decay, self.inner, False).key

    @property
    def rest(self) -> list[Term]:
        return [a for a in self.term.args if a is not self.product]


def steps_of(term: Term, product: Term) -> Iterator[Step]:
    """Of several factors one is the state: not one that decays it as well, nor a decision that resets it."""
    several = len(product.args) > 2
    for f in (f for f in product.args if decays(f)):
        rest = [o for o in product.args if o is not f and not (several and (decays(o) or core(o)[0].op in DECISIONS))]
        if len(rest) == 1:
            yield Step(term, product, f, peeled(rest[0]))


def decays(f: Term) -> bool:
    return fading(f) is not None


def fading(f: Term) -> Term | None:
    """What keeps a factor between zero and one, made by a layer or of learned numbers; a decision may reset it."""
    found, chosen = core(f)
    if found.op in DECAYS and not chosen and learned(found):
        return found
    inner = peeled(f)
    either = inner.args[1:] if inner.op == "where" else inner.args if inner.op == "mul" else ()
    parts = [fading(a) for a in either if number(a) is None and core(a)[0].op not in DECISIONS]
    return parts[0] if parts and None not in parts else None


def complements(f: Term, g: Term) -> bool:
    return complement(f) == (g,) or complement(g) == (f,)


def resets(t: Term, step: Step) -> bool:
    """r * h or r * layer(h)."""
    if t.op != "mul" or not any(core(f)[0].op == "sigmoid" and f is not step.decay for f in t.args):
        return False
    inner = [peeled(a.args[0]) if layered(a) else a for f in t.args for a in (peeled(f),)]
    return step.state in inner


def readings(scene: Scene, step: Step) -> list[Term]:
    """o * tanh(state)."""
    squashed = [r for r in scene.readers.get(step.term, ()) if r.op == "tanh"]
    return [p for t in squashed for p in scene.readers.get(t, ()) if p.op == "mul"]


def settle(scene: Scene, hit: Hit) -> None:
    scene.take(hit)
    scene.used.update(t for t in below(hit.parts, 160, stop=scene.norms))
    scene.claim(s for t in (*hit.parts, *hit.gates) for f in (t, *t.args) if (s := signal(f)) is not None)
