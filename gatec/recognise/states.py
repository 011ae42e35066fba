"""States: cells and recurrences, as one step, as a loop over steps, in parallel form."""

from __future__ import annotations

from gatec.match import Term
from gatec.match.written import without
from gatec.recognise.look import CONTRACTIONS, below, fixed, parameter, peeled, raw, reaches
from gatec.recognise.parallel import delta, parallel, scanned
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.signals import core, signal
from gatec.recognise.steps import Step, complements, decays, readings, resets, settle, steps_of

LEAVES = {"LSTM": "lstm", "LSTMCell": "lstm", "GRU": "gru", "GRUCell": "gru", "lstm": "lstm", "lstm_cell": "lstm",
          "gru": "gru", "gru_cell": "gru", "quantized_lstm": "lstm"}  # fmt: skip


def states(scene: Scene) -> None:
    """Every state, from torch's own cells to cumulative sums of logarithms."""
    leaves(scene)
    steps: dict[Term, list[Step]] = {}
    seen: set[Term] = set()
    for term in scene.sums:
        fresh = [a for a in term.args if a.op == "mul" and a not in seen]
        seen.update(fresh)
        steps[term] = [s for p in fresh for s in steps_of(term, p)]
    chains(scene, steps)
    for term, found in steps.items():
        hit = next((h for s in found if term not in scene.used and (h := single(scene, s)) is not None), None)
        if hit is not None:
            settle(scene, hit)
    scanned(scene)
    delta(scene)
    parallel(scene)


def leaves(scene: Scene) -> None:
    """nn.LSTM, nn.GRU and their cells; a cell that is called on its own state, once, at the last of its steps."""
    calls = [t for t in scene.terms if t.op.partition(":")[2] in LEAVES]
    for term in calls:
        if not any(t is not term and _layer(t) == _layer(term) and reaches(t, term) for t in calls):
            scene.take(Hit("cell", LEAVES[term.op.partition(":")[2]], term, term.args[:1], term.args[1:2]))


def _layer(call: Term) -> tuple[object, ...]:
    """What two calls of one layer share: its module, or its weights."""
    return (call.op, call.data[0] if call.op.startswith("module:") else frozenset(filter(parameter, call.args)))


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
    return "gru" if any(complements(f, g) for a in step.rest for f in a.args for g in keeps) else "lstm"


def _consume(scene: Scene, chain: list[Step]) -> None:
    """All that the steps are made of: their products, what flows in, how the state is read."""
    for step in chain:
        gates = [
            s for a in (*step.term.args, *readings(scene, step)) for f in (a, *a.args) if (s := signal(f)) is not None
        ]
        inside = below((step.decay, *step.rest, *(s.factor for s in gates)), 64, stop=scene.norms)
        cut = [t for t in below(tuple(step.rest), 60, through=True) if resets(t, step)]
        scene.used.update((step.term, step.product, *step.term.args, *readings(scene, step), *inside, *cut))
        scene.claim([*gates, *(s for t in cut for f in t.args if (s := signal(f)) is not None)])
    first = [t for t in below((chain[-1].term, chain[-1].state), stop=scene.norms) if t.op == "mul"]
    for t in first:  # from a state of zeros
        scene.used.update((t, *(r for f in t.args for r in scene.readers.get(f, ()) if without(t.args, r.args))))


# -- one step ---------------------------------------------------------------------------------------------------------


def single(scene: Scene, step: Step) -> Hit | None:
    return _gru(scene, step) or _lstm(scene, step) or _decayed(step) or None


def _gru(scene: Scene, step: Step) -> Hit | None:
    """A blend of a state with a candidate that saw the state through a gate of its own."""
    for other in (a for a in step.rest if a.op == "mul" and any(complements(f, step.decay) for f in a.args)):
        candidate = [f for f in other.args if not complements(f, step.decay)]
        cut = [t for t in below(tuple(candidate), 60, through=True) if resets(t, step) and t not in scene.used]
        if cut:
            parts = (step.product, other, *cut)
            return Hit("cell", "gru", step.term, (step.decay,), (step.state,), parts)
    return None


def _lstm(scene: Scene, step: Step) -> Hit | None:
    """A state kept by one sigmoid while others let something in."""
    signals = [(a, s) for a in step.rest if a.op == "mul" for f in a.args if (s := signal(f)) is not None]
    entries = [(a, s) for a, s in signals if s.core.op == "sigmoid" and s.factor is not step.decay and not s.fixed]
    if not entries or core(step.decay)[0].op != "sigmoid" or any(complements(s.factor, step.decay) for _, s in entries):
        return None
    read = [p for p in readings(scene, step) if any(core(f)[0].op == "sigmoid" for f in p.args)]
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
