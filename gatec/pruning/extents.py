"""How long a dimension is while gates decide: a product of numbers, widths of groups, and sums of such products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gatec.axes import Atom, flat

Factor = str | tuple["Extent", ...]  # the slots of a group that are left, or a sum
Widths = Mapping[str, Any]  # how many slots of each group are left: numbers, or tensors with a gradient


class Extent(NamedTuple):
    """`number` times all `factors`."""

    number: int
    factors: tuple[Any, ...] = ()

    def of(self, widths: Widths) -> Any:
        """What it is at these widths."""
        found: Any = self.number
        for factor in self.factors:
            found = found * value(factor, widths)
        return found


def value(factor: Any, widths: Widths) -> Any:
    return widths[factor] if isinstance(factor, str) else sum(term.of(widths) for term in factor)


def extent(axes: Iterable[Atom], names: Mapping[Any, str]) -> Extent:
    """Of an axis, where `names` are those of the gated atoms."""
    number, factors = 1, list[Any]()
    for atom in flat(axes):
        if atom in names:
            factors.append(names[atom])
        elif atom.terms is None:
            number *= atom.size
        else:
            terms = tuple(extent(t, names) for t in atom.terms)
            if any(t.factors for t in terms):
                factors.append(terms)
            else:
                number *= atom.size
    return Extent(number, tuple(factors))


def product(extents: Iterable[Extent]) -> Extent:
    number, factors = 1, list[Any]()
    for one in extents:
        number *= one.number
        factors += one.factors
    return Extent(number, tuple(sorted(factors, key=repr)))
