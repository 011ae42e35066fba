"""Blocks taken out of their containers: what is left moves up, and everything that counts blocks is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial

from torch import nn

from gatec.blocks.configs import shortened
from gatec.blocks.numbers import COUNT, renumbered
from gatec.capture import unit_of
from gatec.capture.spies import refill
from gatec.errors import Refused
from gatec.rewrite import Undo


def removed(model: nn.Module, paths: Iterable[str], undo: Undo) -> None:
    """Take the blocks at `paths` out. Raises Refused where a chain would be empty or cannot do without them."""
    chains: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        outer, _, name = path.rpartition(".")
        chains[outer].add(name)
    for outer, names in chains.items():
        container = model.get_submodule(outer)
        _unwatched(model, outer)
        order = list(container._modules)
        gone = [i for i, name in enumerate(order) if name in names]
        if len(gone) == len(order):
            raise Refused(
                f"every block of {outer or 'the model'} is closed, and nothing would be left: open one of them"
            )
        renumbered(outer, container, gone, undo)
        shortened(model, outer, len(order), gone, undo)
        _counted(model.get_submodule(outer.rpartition(".")[0]), len(order), len(gone), undo)
        _put(container, place(order, names), undo)


def place(order: Iterable[str], gone: set[str]) -> dict[str, str]:
    """New name -> name for what is left: numbers count on without a gap, names stay."""
    order = list(order)
    left = [name for name in order if name not in gone]
    return (
        {str(i): n for i, n in enumerate(left)}
        if order == [str(i) for i in range(len(order))]
        else {n: n for n in left}
    )


def _put(container: nn.Module, names: dict[str, str], undo: Undo) -> None:
    held = container._modules
    before = dict(held)
    undo.append(partial(refill, held, before))
    refill(held, {new: before[old] for new, old in names.items()})


def _counted(owner: nn.Module, size: int, gone: int, undo: Undo) -> None:
    """What the module around a container keeps as its number of blocks."""
    for name, value in list(vars(owner).items()):
        if type(value) is int and value == size and COUNT.search(name):
            undo.append(partial(setattr, owner, name, value))
            setattr(owner, name, value - gone)


def _unwatched(model: nn.Module, outer: str) -> None:
    """Refuse where something was put into a module that holds the chain: it names what is below by its place."""
    for path in _ancestors(outer):
        unit = unit_of(model.get_submodule(path))
        if unit is not None and unit.rewrites:
            raise Refused(f"{unit.rewrites[0].name} was put into {path or 'the model'}, which runs {outer}")


def _ancestors(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path
