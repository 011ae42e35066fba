"""Axes: which positions of which dimensions of a model's tensors live and die together."""

from gatec.axes import computing, moving
from gatec.axes.atoms import Atom, Axis, Fact, flat, leaves, size
from gatec.axes.computing import KERNEL
from gatec.axes.ledger import Called, Ledger, Like
from gatec.axes.places import slots
from gatec.axes.walk import Walk, spelled_out, told, walked

__all__ = [
    "KERNEL",
    "Atom",
    "Axis",
    "Called",
    "Fact",
    "Ledger",
    "Like",
    "Walk",
    "computing",
    "flat",
    "leaves",
    "moving",
    "size",
    "slots",
    "spelled_out",
    "told",
    "walked",
]
