"""Which positions of a dimension are kept when slots of its atoms are closed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gatec.axes import Atom, Axis, Walk, flat, size, slots

Closed = Mapping[Atom, NDArray[np.bool_]]


def left(axes: Axis, closed: Closed) -> int:
    """How many positions an axis keeps."""
    found = 1
    for atom in flat(axes):
        if atom.terms is not None:
            found *= sum(left(t, closed) for t in atom.terms)
        else:
            found *= int((~closed[atom]).sum()) if atom in closed else atom.size
    return found


def kept(axes: Axis, closed: Closed) -> list[int] | None:
    """The positions of a dimension that are kept; None where all are."""
    gone = [at[closed[atom]].flatten() for atom, at in slots(axes).items() if atom in closed]
    if not gone:
        return None
    dead = np.concatenate(gone)
    return list(map(int, np.setdiff1d(np.arange(size(axes)), dead)))


def cuts(walk: Walk, closed: Closed) -> dict[str, dict[int, list[int]]]:
    found: dict[str, dict[int, list[int]]] = {}
    for name, dims in walk.tensors.items():
        for dim, axes in enumerate(dims):
            at = kept(axes, closed)
            if at is not None:
                found.setdefault(name, {})[dim] = at
    return found
