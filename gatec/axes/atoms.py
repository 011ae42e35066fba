"""What the positions of a dimension are: products and sums of atoms, the index sets that live and die together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Cut(Exception):
    """Two ways of cutting one dimension that do not fit each other."""


class Fact(NamedTuple):
    """Something that an operation does with an atom: where, and what of."""

    kind: str
    where: str


class Atom:
    """An index set of `size` slots. It is one thing, or a product of atoms (row-major), or a sum of axes one behind another.

    Atoms of dimensions that an operation aligns become one (`parent`); one that a view splits becomes a product, one that
    is sliced or concatenated a sum. `pins` say why no slot of it can be removed.
    """

    __slots__ = ("factors", "facts", "parent", "pins", "size", "terms")

    def __init__(self, size: int, pin: str = "") -> None:
        self.size = size
        self.parent: Atom | None = None
        self.factors: list[Atom] | None = None
        self.terms: list[Axis] | None = None
        self.pins: dict[str, None] = {pin: None} if pin else {}
        self.facts: dict[Fact, None] = {}

    def __repr__(self) -> str:
        return f"Atom({self.size})"


Axis = tuple[Atom, ...]  # a product, row-major; a dimension of size one is the empty product


def axis(size: int, pin: str = "") -> Axis:
    return () if size == 1 else (Atom(size, pin),)


def root(atom: Atom) -> Atom:
    while atom.parent is not None:
        if atom.parent.parent is not None:
            atom.parent = atom.parent.parent
        atom = atom.parent
    return atom


def flat(axes: Iterable[Atom]) -> list[Atom]:
    """Products written out: what is left are whole atoms and sums."""
    found = []
    for atom in map(root, axes):
        found += flat(atom.factors) if atom.factors is not None else [atom]
    return found


def leaves(axes: Iterable[Atom]) -> Iterator[Atom]:
    """The whole atoms below an axis, those that several terms share more than once."""
    for atom in flat(axes):
        if atom.terms is None:
            yield atom
        else:
            for term in atom.terms:
                yield from leaves(term)


def size(axes: Iterable[Atom]) -> int:
    return math.prod(a.size for a in axes)


def pin(axes: Iterable[Atom], why: str) -> None:
    """No slot of these can be removed."""
    for leaf in leaves(axes):
        leaf.pins.setdefault(why)


def mark(axes: Iterable[Atom], kind: str, where: str) -> None:
    for leaf in leaves(axes):
        leaf.facts.setdefault(Fact(kind, where))


def unify(one: Sequence[Atom], two: Sequence[Atom]) -> None:
    """The same slots, in the same order. Both are pinned where they are cut in ways that do not fit each other."""
    a, b = flat(one), flat(two)
    try:
        while a and b:
            first, second = a[0], b[0]
            if first.size > second.size:
                parted(first, second.size)
            elif second.size > first.size:
                parted(second, first.size)
            else:
                _join(first, second)
                a, b = a[1:], b[1:]
            a, b = flat(a), flat(b)
        if a or b:
            raise Cut
    except Cut:
        pin([*one, *two], "its slots are cut in two ways that do not fit each other")


def parted(atom: Atom, outer: int) -> tuple[Axis, Axis]:
    """A whole atom or a sum as a product of `outer` slots and what each of them consists of."""
    if atom.size % outer:
        raise Cut
    if atom.terms is None:
        atom.factors = [_child(atom, outer), _child(atom, atom.size // outer)]
    else:
        atom.factors, atom.terms = _regular(atom, outer), None
    return (atom.factors[0],), tuple(atom.factors[1:])


def _regular(atom: Atom, outer: int) -> list[Atom]:
    """A sum of equal runs of terms as a product: which run, and where in it."""
    run, runs = atom.size // outer, list[list[Axis]]([[]])
    for end in range(run, atom.size, run):
        _cut_at(atom, end)
    for term in atom.terms or ():
        if size_of(runs[-1]) == run:
            runs.append([])
        runs[-1].append(term)
    pieces = [summed(r) for r in runs]
    for other in pieces[1:]:
        unify(pieces[0], other)
    which = Atom(outer, "its slots are parts that are used one by one")
    return [which, *pieces[0]]


def size_of(terms: Iterable[Axis]) -> int:
    return sum(size(t) for t in terms)


def _child(atom: Atom, length: int) -> Atom:
    made = Atom(length)
    made.pins, made.facts = dict(atom.pins), dict(atom.facts)
    return made


def split(axes: Sequence[Atom], sizes: Sequence[int]) -> list[Axis]:
    """The axis cut into consecutive factors of these sizes."""
    rest, found = flat(axes), []
    for need in sizes:
        taken: list[Atom] = []
        while need > 1:
            if not rest:
                raise Cut
            first = rest.pop(0)
            if need % first.size == 0:
                taken.append(first)
                need //= first.size
            else:
                outer, inner = parted(first, need)
                taken += flat(outer)
                rest, need = [*flat(inner), *rest], 1
        found.append(tuple(taken))
    if rest:
        raise Cut
    return found


def summed(terms: Sequence[Axis]) -> Axis:
    """The concatenation of these axes."""
    terms = [t for t in terms if size(t)]
    if len(terms) == 1:
        return tuple(terms[0])
    made = Atom(size_of(terms))
    made.terms = [t if t else (Atom(1),) for t in map(tuple, terms)]
    return (made,)


def narrow(axes: Sequence[Atom], start: int, length: int) -> Axis:
    """A slice of an axis."""
    if length == size(axes):
        return tuple(axes)
    first, *rest = flat(axes)
    inner = size(rest)
    if start % inner or length % inner:
        raise Cut
    if length == inner:
        pin([first], "its slots are taken one by one")
        return tuple(rest)
    return (*_slice(first, start // inner, length // inner), *rest)


def _slice(atom: Atom, start: int, length: int) -> Axis:
    if atom.terms is None:
        bounds = sorted({0, start, start + length, atom.size})
        atom.terms = [(_child(atom, b - a),) for a, b in itertools.pairwise(bounds)]
    _cut_at(atom, start)
    _cut_at(atom, start + length)
    at, taken = 0, []
    for term in atom.terms:
        if start <= at < start + length:
            taken.append(term)
        at += size(term)
    return summed(taken)


def _cut_at(atom: Atom, where: int) -> None:
    """Let a term of a sum end at this slot."""
    assert atom.terms is not None
    at = 0
    for n, term in enumerate(atom.terms):
        length = size(term)
        if at < where < at + length:
            pieces = [narrow(term, 0, where - at), narrow(term, where - at, at + length - where)]
            atom.terms[n : n + 1] = [p or (Atom(1),) for p in pieces]
            return
        at += length


def _join(a: Atom, b: Atom) -> None:
    """Two atoms of one size become one."""
    if a is b:
        return
    if a.terms is not None and b.terms is not None:
        _align(a, b)
    if a.terms is not None:
        a, b = b, a
    a.parent = b
    for why in a.pins:
        pin([b], why)
    for fact in a.facts:
        mark([b], *fact)


def _align(a: Atom, b: Atom) -> None:
    """Two sums term by term."""
    for one, other in ((a, b), (b, a)):
        at = 0
        for term in list(one.terms or ()):
            _cut_at(other, at)
            at += size(term)
    for x, y in zip(list(a.terms or ()), list(b.terms or ()), strict=True):
        unify(x, y)
