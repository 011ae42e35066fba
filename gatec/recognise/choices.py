"""Choices: weights over experts or streams, one of two results, what the k largest keep."""

from __future__ import annotations

from collections.abc import Iterator

from gatec.match import Term
from gatec.recognise.experts import bundle, chosen, contracted, members, summed
from gatec.recognise.look import (
    ACTIVATIONS,
    CONTRACTIONS,
    JOINS,
    MIXED,
    attends,
    below,
    fixed,
    layered,
    learned,
    peeled,
    pointwise_of,
    reaches,
    whole,
)
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import DECISIONS, Signal, core, kept, picked, signal


def weighted(scene: Scene) -> None:
    """One find for each set of weights, however many products it is used in."""
    uses: dict[Term, list[tuple[Term, Signal]]] = {}
    summing: set[Term] = set()  # weights that are known by what they sum
    for term in scene.terms:
        for gate in _weights(scene, term):
            uses.setdefault(gate.core, []).append((term, gate))
        for gate in (*summed(scene, term), *contracted(term)):
            if learned(gate.core) and (term, gate) not in uses.get(gate.core, ()):
                uses.setdefault(gate.core, []).append((term, gate))
            summing.add(gate.core)
    steps: dict[object, Hit] = {}  # a router at several steps is one, found at the last of them
    for weights, found in uses.items():
        hit = _router(weights, found, weights in summing)
        if hit is not None and not any(t in scene.used for t in hit.parts):
            scene.used.update((*(t for t, _ in found), *below(hit.gates)))
            scene.claim(g for _, g in found)
            steps[found[0][1].key] = hit
    for hit in steps.values():
        scene.take(hit)


def grouped(scene: Scene) -> None:
    """Experts that the k largest of what a layer makes have chosen, and that nothing weighs: one find for each choice."""
    uses: dict[Term, list[tuple[Term, Term]]] = {}
    for term in scene.terms:
        if (found := chosen(term)) is not None:
            uses.setdefault(found[1], []).append((term, found[0]))
    for picks, calls in uses.items():
        gate = Signal(picks, *core(picks))
        if gate.key not in scene.claimed:
            parts = tuple(t for t, _ in calls)
            term, which = calls[-1]
            scene.take(Hit("router", gate.name, term, (which,), term.args[:1], parts))


def _weights(scene: Scene, term: Term) -> Iterator[Signal]:
    if term.op in MIXED:
        gate = Signal(term.args[-1], *core(term.args[-1]))
        if learned(gate.core):
            yield gate
    if term.op != "mul" and term.op not in CONTRACTIONS:
        return
    for f in term.args:
        found, chosen = core(f)
        bounded = found.op in ("sigmoid", "softplus", "relu") or (layered(found) and _picks(f))
        several = _summed_up(scene, term, f) or _mixes(term, Signal(f, found, chosen))
        routed = found.op == "softmax" or (bounded and chosen and kept(f) is None) \
            or (found.op in ("sigmoid", "hardsigmoid") and several)  # fmt: skip
        if routed and not attends(found) and learned(found) and len(term.args) > 1:
            yield Signal(f, found, chosen)


def _summed_up(scene: Scene, product: Term, weights: Term) -> bool:
    """Whether a product weighs several values side by side, and is only summed over them."""
    sides = {len(v.args) for f in product.args if f is not weights and (v := peeled(f)).op in JOINS}
    readers = scene.readers.get(product, [])
    sums = [r.data[0] for r in readers if r.op in ("sum", "mean")]
    return bool(sums) and len(sums) == len(readers) and all(
        len(dims) == 1 and product.shape is not None and product.shape[dims[0]] in sides - {1} for dims in sums
    )  # fmt: skip


def _mixes(term: Term, gate: Signal) -> bool:
    """Whether a product of matrices sums stored ones, each under a number that every sample has for it."""
    many = (gate.core.shape or (0,))[-1]
    held = [a for a in term.args if _mixable(a, gate)] if term.op in CONTRACTIONS else []
    return any((peeled(a).shape or ())[0] == many for a in held)


def _picks(factor: Term) -> bool:
    """Whether a factor says which entry of a row is the largest."""
    return any(t.op.removeprefix("call:") in ("argmax", "one_hot") for t in below((factor,), 16))


def _router(weights: Term, found: list[tuple[Term, Signal]], summing: bool) -> Hit | None:
    products = [(t, g) for t, g in found if any(_stream(v, g) for v in t.args if v is not g.factor)]
    parts = {g.factor for _, g in products}
    apart = [t for t, _ in products if not any(set(t.args) < set(o.args) for o, _ in products)]
    several = min(len(parts), len(set(apart))) > 1 or summing or any(_bundled(t, g) for t, g in products)
    if not products or not (several or any(g.chosen and not picked(g.factor) for _, g in products)):
        return None
    term, gate = products[-1]
    values = tuple(
        f for t, g in products for f in _weighed(t) if f is not g.factor and (not fixed(f) or _mixable(f, g))
    )
    if len(parts) == 1 and _kept_whole(gate) and not any(_bundled(t, g) for t, g in products):
        return Hit("hard", "topk", term, (gate.factor,), values, tuple(t for t, _ in products))
    inside = [m for v in values for m in members(v)]
    mixture = fixed(weights, looked_up=True) or (not gate.chosen and any(reaches(weights, m) for m in inside))
    name = weights.op if weights.op in ACTIVATIONS else "linear"
    return Hit("mixture" if mixture else "router", name, term, (gate.factor,), values, tuple(t for t, _ in products))


def _weighed(term: Term) -> tuple[Term, ...]:
    """What may stand under weights: of a layer whose kernels are mixed the kernels, not its input."""
    return term.args[1:] if term.op in MIXED else term.args


def _kept_whole(gate: Signal) -> bool:
    """The largest numbers of a sigmoid at their own places, zero elsewhere: what they multiply is kept or dropped."""
    return gate.core.op == "sigmoid" and gate.chosen and whole(gate.factor).op.startswith("call:scatter")


def _stream(value: Term, gate: Signal) -> bool:
    """Something to be weighed: no number, and no mask of chosen places."""
    if fixed(value):
        return _mixable(value, gate)
    return core(value)[0].op not in DECISIONS and peeled(value).op not in ("recip", "log", "log_softmax")


def _bundled(term: Term, gate: Signal) -> bool:
    """Whether what is weighed are several values side by side, or what a batch of matrices made."""
    rest = [v for v in term.args if v is not gate.factor and _stream(v, gate)]
    return any(bundle(v) is not None or _mixable(v, gate) for v in rest)


def _mixable(value: Term, gate: Signal) -> bool:
    """Stored matrices, which one row of weights for each sample mixes to a matrix of its own."""
    value = peeled(value)
    return value.op == "param" and len(value.shape or ()) > 2 and len(gate.core.shape or ()) == 2


def decided(scene: Scene) -> None:
    """where(score > threshold, a, b), once for each decision; what is scattered back to the places of the k largest."""
    decisions: set[Term] = set()
    for term in (t for t in scene.terms if t not in scene.used):
        if term.op == "where" and not scene.folded(term):
            test, yes, no = term.args
            if whole(test) in decisions:
                continue  # what else the same decision chooses
            gate = signal(test)
            asked = tuple(peeled(a) for t in below((test,), 16) if t.op in DECISIONS for a in t.args)
            if gate is None or any(fixed(a) or pointwise_of(a, asked) for a in (yes, no)) or gate.key in scene.claimed:
                continue
            decisions.add(whole(test))
            scene.take(Hit("exit", gate.name, term, (test,), (yes, no)))
        elif term.op.startswith("call:scatter") and len(term.args) > 1 and kept(term) is None:
            hit = _scattered(term)
            if hit is not None:
                scene.take(hit)


def _scattered(term: Term) -> Hit | None:
    tops = [t for t in below(term.args, 12) if t.op == "call:topk"]
    index = [a for a in term.args if peeled(a) in tops and a.op == "item" and a.data == 1]
    values = [a for a in term.args if a not in index and any(t in below((a,), 12) for t in tops)]
    if not index or not values or not learned(tops[0]):
        return None
    return Hit("hard", "topk", term, (index[0],), tuple(values))


def given(scene: Scene) -> None:
    """A mask that comes in from outside and is put on one of several branches of a value, not on what pads all of it."""
    seen: set[tuple[Term, ...]] = set()  # a branch that is scaled in a larger sum is the same
    for term in scene.sums:
        fresh = [p for a in term.args if (p := whole(a)).op == "mul" and p not in scene.used]
        for p in fresh:
            mask = next((f for f in p.args if scene.truth(f)), None)
            rest = tuple(f for f in p.args if f is not mask)
            beside = [o for a in term.args if (o := whole(a)) is not p and mask not in o.args]
            if mask is None or len(rest) != 1 or (mask, *rest) in seen:
                continue
            if any(_branches(rest[0], o) for o in beside):
                seen.add((mask, *rest))
                scene.take(Hit("hard", "given", term, (mask,), rest, (p,)))


def _branches(a: Term, b: Term) -> bool:
    """Whether two values are made from a third, neither from the other."""
    under = [set(below((t,), 300, through=True)) for t in (a, b)]
    apart = peeled(a) not in under[1] and peeled(b) not in under[0]
    return apart and any(layered(t) for t in under[0] & under[1])
