"""Which gates a model already has: every product, blend, mixture, state and decision that lets something through."""

from gatec.recognise.find import KINDS, Find
from gatec.recognise.rules import finds

__all__ = ["KINDS", "Find", "finds"]
