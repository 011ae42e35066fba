"""Recurrences without steps: the delta rule, cumulative sums of logarithms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gatec.match import Term
from gatec.recognise.look import (
    CONTRACTIONS,
    POINTWISE,
    below,
    fixed,
    layered,
    learned,
    parameter,
    peeled,
    raw,
    reaches,
)
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import signal
from gatec.recognise.steps import fading, settle

CUMULATIVE = {"call:cumsum", "call:logcumsumexp", "call:cumprod"}
SCANS = {"call:linear_recurrence", "call:scan"}


def delta(scene: Scene) -> None:
    """S + beta * k (v - read(S, k)): what is written replaces what was there."""
    for term in (t for t in scene.having("add") if t not in scene.used):
        held = [a for a in term.args if raw(a) or a.op == "value"]
        for p in (a for a in term.args if a.op == "mul" and held and a not in scene.used):
            gates = [s for f in p.args if (s := signal(f)) is not None and s.bounded]
            inside = list(below((p,), 120))
            read = [t for t in inside if t.op in CONTRACTIONS or t.op == "sum"]
            if gates and any(reaches(t, peeled(h), 60) for t in read for h in held):
                settle(scene, Hit("recurrence", gates[0].name, term, (gates[0].factor,), tuple(held), (p,)))


def scanned(scene: Scene) -> None:
    """Every state of h[t] = a[t] * h[t-1] + b[t] at once, as gatec.linear_recurrence computes them."""
    for term in (t for t in scene.terms if t.op in SCANS and len(t.args) > 1 and t not in scene.used):
        decay, new = term.args[:2]
        found = fading(decay)
        if found is not None:
            settle(scene, Hit("recurrence", found.op, term, (decay,), (term,), (new,)))


def parallel(scene: Scene) -> None:
    """exp of cumulative sums of learned logarithms: one find for each such sum."""
    found: dict[Term, list[Term]] = {}
    known: dict[object, Term] = {}
    for term in (t for t in scene.terms if t not in scene.used and t.op in ("mul", "exp", "call:cumprod")):
        for f in (term, *term.args):
            base = _accumulated(f) if f.op in ("exp", "call:cumprod") else None
            if base is not None:
                key = frozenset(t.data for t in below((base,)) if layered(t) or parameter(t) or _packed(t))
                found.setdefault(known.setdefault(key, base), []).append(term)
    scene.used.update(_entering(scene, found))
    for base, terms in found.items():
        products = [t for t in terms if t.op == "mul"] or terms
        last = products[-1]
        gate = next((f for f in (last, *last.args) if f.op in ("exp", "call:cumprod") and _accumulated(f)), last)
        values = tuple(f for f in last.args if f is not gate) if last is not gate else ()
        name = next((t.op for t in below((base,), 24) if t.op in ("sigmoid", "logsigmoid", "softplus")), "exp")
        scene.take(Hit("recurrence", name, last, (gate,), values, (*terms, *below((base,)))))
        scene.claim(s for t in (*terms, *below((base,))) for f in (t, *t.args) if (s := signal(f)) is not None)


def _entering(scene: Scene, bases: Iterable[Term]) -> Iterator[Term]:
    """Products with what decays come out of: what flows into a state is weighed by the step that lets it go."""
    steps = {t for base in bases for t in below((base,)) if not (layered(t) or fixed(t) or raw(t))}
    yield from (t for t in scene.having("mul") if any(peeled(a) in steps for a in t.args))


def _packed(t: Term) -> bool:
    """One of several values that were made at once; a part of sums along steps is none."""
    return t.op == "part" and not any(a.op in CUMULATIVE for a in below((t,)))


def _accumulated(factor: Term) -> Term | None:
    """What is summed up along steps under an exponential, where it is learned."""
    queue, seen = [factor], {factor}
    for t in queue:
        for a in t.args:
            inside = t.op in POINTWISE or t.op in CUMULATIVE or t.op in ("call:tril", "call:logcumsumexp")
            if a not in seen and len(seen) < 40 and inside:
                seen.add(a)
                queue.append(a)
    sums = [t for t in queue if t.op in ("call:cumsum", "call:cumprod")] or [t for t in queue if t.op in CUMULATIVE]
    base = min((peeled(t.args[0]) for t in sums), key=lambda t: t.number, default=None)
    return base if base is not None and learned(base) and not parameter(base) else None
