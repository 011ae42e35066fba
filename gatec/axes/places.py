"""Where in a dimension the slots of its atoms lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gatec.axes.atoms import Atom, flat, size

Slots = dict[Atom, NDArray[np.int64]]


def slots(axes: Sequence[Atom], at: NDArray[np.int64] | None = None) -> Slots:
    """For each whole atom of an axis the positions [slots, times] that each of its slots takes in the dimension."""
    found: Slots = {}
    if not size(axes):
        return found
    atoms = flat(axes)
    grid = (np.arange(size(axes)) if at is None else at).reshape(*(a.size for a in atoms), -1)
    for n, atom in enumerate(atoms):
        rows = np.moveaxis(grid, n, 0).reshape(atom.size, -1)
        if atom.terms is None:
            _add(found, {atom: rows})
            continue
        start = 0
        for term in atom.terms:
            length = size(term)
            _add(found, slots(term, rows[start : start + length]))
            start += length
    return found


def _add(found: Slots, more: Slots) -> None:
    for atom, rows in more.items():
        found[atom] = np.concatenate([found[atom], rows], 1) if atom in found else rows
