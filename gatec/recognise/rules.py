"""Which gates a model already has, in the order in which what is larger takes its parts from what is smaller."""

from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_leaves

from gatec.match import Canon, Term
from gatec.recognise import cost
from gatec.recognise.choices import decided, given, grouped, weighted
from gatec.recognise.find import Find
from gatec.recognise.look import below, layered, parameter, reaches
from gatec.recognise.products import product
from gatec.recognise.scene import Hit, Scene
from gatec.recognise.states import states
from gatec.recognise.sums import sums
from gatec.recognise.weights import masked, stacked
from gatec.recognise.words import Wording, gated


def finds(canon: Canon, *, calls: bool = False) -> list[Find]:
    """Every gate in the terms, in the order of the graph, each once and whole; with `calls`, once for each call of it."""
    scene = Scene.of(canon)
    for rule in (states, weighted, grouped, sums, stacked, masked, decided, given, products):
        rule(scene)
    found = [f for hit in outer(scene.hits if calls else once(scene)) if (f := _find(scene, hit)) is not None]
    return sorted(found, key=lambda f: f.term.number)


def once(scene: Scene) -> list[Hit]:
    """The same layers on other inputs are the same gate, called again."""
    kept: list[Hit] = []
    first: dict[object, set[Term]] = {}
    for hit in scene.hits:
        inside = [t for t in below(hit.gates) if layered(t) or parameter(t) or t.op == "part"]
        calls = set(filter(layered, inside))
        known = first.setdefault((hit.kind, frozenset(t.data for t in inside)), calls)
        if calls == known:
            kept.append(hit)
    return kept


def outer(hits: list[Hit]) -> list[Hit]:
    """Without products that only another gate's signal is made of, layers aside."""
    within = [(h, set(below(h.gates))) for h in hits]
    return [h for h in hits if h.term.op != "mul" or not any(h.term in g and _signals(h, o) for o, g in within)]


def _signals(hit: Hit, other: Hit) -> bool:
    return other is not hit and not any(reaches(v, hit.term) for v in other.values)


def products(scene: Scene) -> None:
    for term in [t for t in scene.having("mul") if len(t.args) > 1 and t not in scene.used]:
        open_yet = term not in scene.used and scene.maximal(term) and not scene.folded(term)
        for hit in product(scene, term) if open_yet else []:
            scene.take(hit)


def _find(scene: Scene, hit: Hit) -> Find | None:
    place = scene.place(hit.term)
    if place is None:
        return None
    path, node = place
    value = next((v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)), None)
    shape = tuple(value.shape) if value is not None else ()
    own = cost.pointwise(scene.canon, path, node, hit.values)
    return Find(
        hit.kind,
        hit.signal,
        _value(hit),
        path,
        str(node.meta.get("where", "")),
        shape,
        _equation(hit),
        parameters=cost.parameters(hit.gates) + cost.inner(scene.canon, hit.term),
        flops=cost.flops(hit.gates, own) + cost.steps(scene.canon, hit.term),
        bytes=cost.traffic(own),
        node=node,
        term=hit.term,
    )


def _value(hit: Hit) -> str:
    return "state" if hit.kind in ("cell", "recurrence") else gated(hit.values)


def _equation(hit: Hit) -> str:
    names: dict[Term, str] = {hit.values[0]: "h"} if hit.kind in ("cell", "recurrence") and hit.values else {}
    said = Wording(names)
    if hit.term.op != "mul":
        return said.said(hit.term)
    first = [f for f in hit.term.args if f in hit.gates]
    return said.product([*first, *(f for f in hit.term.args if f not in first)], hit.term.data)
