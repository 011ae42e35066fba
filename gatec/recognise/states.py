"""States: cells and recurrences, as one step, as a loop over steps, in parallel form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gatec.match import Term
from gatec.match.written import complement, number, without
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
from gatec.recognise.signals import DECISIONS, Signal, core, signal

DECAYS = {"sigmoid", "hardsigmoid", "exp"}
CUMULATIVE = {"call:cumsum", "call:logcumsumexp", "call:cumprod"}
LEAVES = {"LSTM": "lstm", "LSTMCell": "lstm", "GRU": "gru", "GRUCell": "gru", "lstm": "lstm", "lstm_cell": "lstm",
          "gru": "gru", "gru_cell": "gru", "quantized_lstm": "lstm"}  # fmt: skip


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


def states(scene: Scene) -> None:
    """Every state, from torch's own cells to cumulative sums of logarithms."""
    leaves(scene)
    steps: dict[Term, list[Step]] = {}
    seen: set[Term] = set()
    for term in scene.sums:
        fresh = [a for a in term.args if a.op == "mul" and a not in seen]
        seen.update(fresh)
        steps[term] = [s for p in fresh for s in _steps(term, p)]
    chains(scene, steps)
    for term, found in steps.items():
        hit = next((h for s in found if term not in scene.used and (h := single(scene, s)) is not None), None)
        if hit is not None:
            settle(scene, hit)
    parallel(scene)


def settle(scene: Scene, hit: Hit) -> None:
    scene.take(hit)
    scene.used.update(t for t in below(hit.parts, 160))
    scene.claim(s for t in (*hit.parts, *hit.gates) for f in (t, *t.args) if (s := signal(f)) is not None)


def leaves(scene: Scene) -> None:
    """nn.LSTM, nn.GRU and their cells; a cell that is called on its own state, once, at the last of its steps."""
    calls = [t for t in scene.terms if t.op.partition(":")[2] in LEAVES]
    for term in calls:
        if not any(t is not term and _layer(t) == _layer(term) and reaches(t, term) for t in calls):
            scene.take(Hit("cell", LEAVES[term.op.partition(":")[2]], term, term.args[:1], term.args[1:2]))


def _layer(call: Term) -> tuple[object, ...]:
    """What two calls of one layer share: its module, or its weights."""
    return (call.op, call.data[0] if call.op.startswith("module:") else frozenset(filter(parameter, call.args)))


def _steps(term: Term, product: Term) -> Iterator[Step]:
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


# -- a loop over steps ------------------------------------------------------------------------------------------------


def chains(scene: Scene, steps: dict[Term, list[Step]]) -> None:
    """Steps whose state is the step before: one find at the last of them."""
    linked: dict[Term, tuple[Step, Step]] = {}
    for term, found in steps.items():
        for s in found:
            before = next((b for b in steps.get(s.state, ()) if b.key == s.key), None)
            if before is not None:
                linked.setdefault(term, (s, before))
    last = [t for t in linked if t not in {b.term for _, b in linked.values()}]
    keys: set[object] = set()
    for term in last:
        step = linked[term][0]
        chain, at = [step], linked[term][1]
        while at.term in linked:
            chain.append(linked[at.term][0])
            at = linked[at.term][1]
        chain.append(at)
        if step.key not in keys:
            scene.take(_looped(chain))
        keys.add(step.key)
        _consume(scene, chain)


def _looped(chain: list[Step]) -> Hit:
    step = chain[0]
    depends = any(reaches(f, step.state) for f in _gates(step))
    kind, name = ("cell", _cell(step)) if depends else ("recurrence", step.inner.op)
    return Hit(kind, name, step.term, (step.decay,), (step.state,), tuple(s.term for s in chain))


def _gates(step: Step) -> list[Term]:
    """What lets the state go and what lets something in."""
    return [step.decay, *(f for a in step.rest for f in a.args if signal(f) is not None and a.op == "mul")]


def _cell(step: Step) -> str:
    keeps = [f for f in step.product.args if decays(f)]
    return "gru" if any(_complements(f, g) for a in step.rest for f in a.args for g in keeps) else "lstm"


def _complements(f: Term, g: Term) -> bool:
    return complement(f) == (g,) or complement(g) == (f,)


def _consume(scene: Scene, chain: list[Step]) -> None:
    """All that the steps are made of: their products, what flows in, how the state is read."""
    for step in chain:
        gates = [
            s for a in (*step.term.args, *_readings(scene, step)) for f in (a, *a.args) if (s := signal(f)) is not None
        ]
        inside = below((step.decay, *step.rest, *(s.factor for s in gates)), 64)
        resets = [t for t in below(tuple(step.rest), 60, through=True) if _resets(t, step)]
        scene.used.update((step.term, step.product, *step.term.args, *_readings(scene, step), *inside, *resets))
        scene.claim([*gates, *(s for t in resets for f in t.args if (s := signal(f)) is not None)])
    for t in [
        t for t in below((chain[-1].term, chain[-1].state)) if t.op == "mul"
    ]:  # the first steps, from a state of zeros
        scene.used.update((t, *(r for f in t.args for r in scene.readers.get(f, ()) if without(t.args, r.args))))


def _readings(scene: Scene, step: Step) -> list[Term]:
    """o * tanh(state)."""
    squashed = [r for r in scene.readers.get(step.term, ()) if r.op == "tanh"]
    return [p for t in squashed for p in scene.readers.get(t, ()) if p.op == "mul"]


# -- one step ---------------------------------------------------------------------------------------------------------


def single(scene: Scene, step: Step) -> Hit | None:
    return _gru(scene, step) or _lstm(scene, step) or _decayed(step) or None


def _gru(scene: Scene, step: Step) -> Hit | None:
    """A blend of a state with a candidate that saw the state through a gate of its own."""
    for other in (a for a in step.rest if a.op == "mul" and any(_complements(f, step.decay) for f in a.args)):
        candidate = [f for f in other.args if not _complements(f, step.decay)]
        resets = [t for t in below(tuple(candidate), 60, through=True) if _resets(t, step) and t not in scene.used]
        if resets:
            parts = (step.product, other, *resets)
            return Hit("cell", "gru", step.term, (step.decay,), (step.state,), parts)
    return None


def _resets(t: Term, step: Step) -> bool:
    """r * h or r * layer(h)."""
    if t.op != "mul" or not any(core(f)[0].op == "sigmoid" and f is not step.decay for f in t.args):
        return False
    inner = [peeled(a.args[0]) if layered(a) else a for f in t.args for a in (peeled(f),)]
    return step.state in inner


def _lstm(scene: Scene, step: Step) -> Hit | None:
    """A state kept by one sigmoid while others let something in."""
    signals = [(a, s) for a in step.rest if a.op == "mul" for f in a.args if (s := signal(f)) is not None]
    entries = [(a, s) for a, s in signals if s.core.op == "sigmoid" and s.factor is not step.decay and not s.fixed]
    if (
        not entries
        or core(step.decay)[0].op != "sigmoid"
        or any(_complements(s.factor, step.decay) for _, s in entries)
    ):
        return None
    read = [p for p in _readings(scene, step) if any(core(f)[0].op == "sigmoid" for f in p.args)]
    lets_in = any(core(f)[0].op == "tanh" for a, _ in entries for f in a.args)
    several = len(entries) > 1 and _carried(step, [f for a, s in entries for f in a.args if f is not s.factor])
    if not several and not (raw(step.state) and (read or lets_in)) and not (read and lets_in):
        return None
    parts = (step.product, *(a for a, _ in entries), *read)
    return Hit("cell", "lstm", step.term, (step.decay, *(s.factor for _, s in entries)), (step.state,), parts)


def _carried(step: Step, values: list[Term]) -> bool:
    """Whether a state flows in, or all that is let in was computed from it."""
    state = peeled(step.state.args[0]) if step.state.op == "tanh" else step.state
    return raw(state) or all(reaches(v, state) for v in values)


def _decayed(step: Step) -> Hit | None:
    """decay * h + b of a state that flows in, where b does not come from the state but by a contraction with it."""
    entering = [a for a in step.rest if not fixed(a)]
    free = raw(step.state) and not reaches(step.decay, step.state) and entering
    if not free or any(raw(a) or _sees(a, step.state) for a in entering):
        return None
    return Hit("recurrence", step.inner.op, step.term, (step.decay,), (step.state,), (step.product, *entering))


def _sees(term: Term, state: Term) -> bool:
    """Whether a value is computed from a state otherwise than by reading it out."""
    queue, seen = [term], {term}
    for t in queue:
        if t is state:
            return True
        for a in t.args:
            readout = t.op in CONTRACTIONS or (t.op == "sum" and peeled(a).op == "mul")
            if a not in seen and len(seen) < 120 and not readout:
                seen.add(a)
                queue.append(a)
    return False


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


# -- parallel forms ---------------------------------------------------------------------------------------------------


def parallel(scene: Scene) -> None:
    """exp of cumulative sums of learned logarithms: one find for each such sum."""
    delta(scene)
    found: dict[Term, list[Term]] = {}
    known: dict[object, Term] = {}
    for term in (t for t in scene.terms if t not in scene.used and t.op in ("mul", "exp", "call:cumprod")):
        for f in (term, *term.args):
            base = _accumulated(f) if f.op in ("exp", "call:cumprod") else None
            if base is not None:
                key = frozenset(t.data for t in below((base,)) if layered(t) or parameter(t) or t.op == "part")
                found.setdefault(known.setdefault(key, base), []).append(term)
    for base, terms in found.items():
        products = [t for t in terms if t.op == "mul"] or terms
        last = products[-1]
        gate = next((f for f in (last, *last.args) if f.op in ("exp", "call:cumprod") and _accumulated(f)), last)
        values = tuple(f for f in last.args if f is not gate) if last is not gate else ()
        name = next((t.op for t in below((base,), 24) if t.op in ("sigmoid", "logsigmoid", "softplus")), "exp")
        scene.take(Hit("recurrence", name, last, (gate,), values, (*terms, *below((base,)))))
        scene.claim(s for t in (*terms, *below((base,))) for f in (t, *t.args) if (s := signal(f)) is not None)


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
