"""What the rules look at: the terms, who reads them, and what has been found already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from gatec.match import Canon, Term
from gatec.match.written import without
from gatec.recognise.look import below, norm, peeled, raw
from gatec.recognise.signals import Signal


@dataclass(frozen=True)
class Hit:
    """A gate found at a term: the signals, the values they act on, and the terms that are part of it."""

    kind: str
    signal: str
    term: Term
    gates: tuple[Term, ...]
    values: tuple[Term, ...]
    parts: tuple[Term, ...] = ()


@dataclass
class Scene:
    """`used` are terms that belong to a find; `claimed` are the keys of signals that do."""

    canon: Canon
    readers: dict[Term, list[Term]] = field(default_factory=dict)
    used: set[Term] = field(default_factory=set)
    claimed: set[object] = field(default_factory=set)
    hits: list[Hit] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    inside: dict[Term, list[Hit]] = field(default_factory=dict)  # products found, by their factors

    @classmethod
    def of(cls, canon: Canon) -> Scene:
        """Calls with a backward of their own are looked into: what they compute stands where they are called."""
        known = {inside: call for call, inside in canon.opened.items() if call in canon.carriers}
        held = {inside: canon.carriers[call] for inside, call in known.items()}
        canon = replace(canon, carriers={**held, **canon.carriers})
        inner = [a for t in canon.carriers if t.op == "add" for a in t.args if a.op == "mul"]
        terms = sorted({*canon.carriers, *inner}, key=lambda t: t.number)
        scene = cls(canon, terms=terms)
        queue, reached = list(terms), set(terms)
        for term in queue:
            for a in dict.fromkeys(term.args):
                scene.readers.setdefault(a, []).append(term)
                if a not in reached:
                    reached.add(a)
                    queue.append(a)
        for inside, call in known.items():
            scene.readers.setdefault(inside, []).extend(scene.readers.get(call, ()))
        return scene

    def having(self, op: str) -> Iterator[Term]:
        yield from (t for t in self.terms if t.op == op)

    @cached_property
    def sums(self) -> list[Term]:
        """Sums that are not only a part of a larger one, or of what has taken another form."""
        return [t for t in self.having("add") if self.maximal(t) and not self.folded(t)]

    @cached_property
    def norms(self) -> set[Term]:
        """Where a part of a network begins: what stands under a norm is what came before it."""
        return {t for t in self.readers if norm(t)}

    def maximal(self, term: Term) -> bool:
        """Whether not all who read a product or sum compute a larger one with it."""
        places = self.canon.carriers.get(term, ())
        terms = [self.canon.terms.get((path, u)) for path, n in places for u in n.users]
        others = [t for t in terms if t is not None and t is not term]
        return not others or not all(t.op == term.op and _goes_on(term, t) for t in others)

    def folded(self, term: Term, depth: int = 4) -> bool:
        """Whether what is computed from a term has taken another form, in which the term does not occur."""
        users = [self.canon.terms.get((path, u)) for path, n in self.canon.carriers.get(term, ()) for u in n.users]
        if depth == 0 or None in users or all(t is term for t in users) or not self.maximal(term):
            return False  # returned, read by nothing, or a part of something larger
        return not any(self.maximal(r) and not self.folded(r, depth - 1) for r in self.readers.get(term, ()))

    def take(self, hit: Hit) -> None:
        """Keep a find; its parts and what its signals are made of are no finds of their own."""
        self.hits.append(hit)
        self.used.update((hit.term, *hit.parts, *below(hit.gates)))
        for f in set(hit.term.args) if hit.term.op == "mul" else ():
            self.inside.setdefault(f, []).append(hit)

    def claim(self, signals: Iterable[Signal]) -> None:
        self.claimed.update(s.key for s in signals)

    # -- where a term stands in the graphs --------------------------------------------------------------------------

    def place(self, term: Term) -> tuple[str, fx.Node] | None:
        """The innermost module in which a term is computed; of a part of a sum, where the sum is."""
        held = self.canon.carriers.get(term)
        if not held:
            above = [r for r in self.readers.get(term, ()) if r in self.canon.carriers]
            held = self.canon.carriers[above[0]] if above else []
        made = [place for place in held if place[1].op != "placeholder"] or held
        return max(made, key=lambda place: place[0].count(".") + bool(place[0])) if made else None

    def truth(self, factor: Term) -> bool:
        """Whether a factor is what came in from outside as true or false, cast to a number."""
        values = [node.meta.get("val") for _, node in self.canon.carriers.get(peeled(factor), ()) if raw(factor)]
        return any(isinstance(v, Tensor) and v.dtype is torch.bool for v in values)

    def sizes(self, factor: Term, product: Term) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes with which a factor meets the rest of a product, and those of the result."""
        places = list(self.canon.carriers.get(factor, ()))
        for path, node in places:
            for user in node.users:
                whole = self.canon.terms.get((path, user))
                if whole is not None and whole.op == "mul" and whole.args == (factor,) and whole is not product:
                    places.append((path, user))  # twice the factor
                elif whole is not None and whole is not factor and (whole is product or factor in whole.args):
                    result = user.meta.get("val")
                    if isinstance(result, Tensor) and isinstance(node.meta.get("val"), Tensor):
                        a, b = _unexpanded(node), tuple(result.shape)
                        return (1,) * (len(b) - len(a)) + a, b
        a, b = factor.shape or (), product.shape or ()
        return (1,) * (len(b) - len(a)) + a, b

    def repeats(self, factor: Term, product: Term) -> bool:
        """Whether a factor is repeated along some dimension of a product."""
        g, v = self.sizes(factor, product)
        return any(a == 1 != b for a, b in zip(g, v, strict=False))


def _goes_on(part: Term, larger: Term) -> bool:
    """Whether a sum or product has all that another one has, or what that grew into: g a + g b is g (a + b)."""
    return all(a in larger.args or any(_grew(a, b) for b in larger.args) for a in part.args)


def _grew(a: Term, b: Term) -> bool:
    """g (x + y) out of g x."""
    sums = [f for f in b.args if f.op == "add"] if a.op == b.op == "mul" else []
    left = [without(a.args, [f for f in b.args if f is not total]) for total in sums]
    return any(x is not None and len(x) == 1 and x[0] in total.args for x, total in zip(left, sums, strict=True))


def _unexpanded(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a node before it was repeated along some dimensions."""
    sizes = tuple(node.meta["val"].shape)
    while node.all_input_nodes and isinstance(value := node.all_input_nodes[0].meta.get("val"), Tensor):
        before = tuple(value.shape)
        if (
            before == sizes
            or len(before) != len(sizes)
            or any(a not in (1, b) for a, b in zip(before, sizes, strict=True))
        ):
            break
        node, sizes = node.all_input_nodes[0], before
    return sizes
