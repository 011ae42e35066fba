"""What is looked for: a canonical form in which every spelling of one computation is one term, and patterns over it."""

from gatec.match.canon import Canon
from gatec.match.flow import Flow
from gatec.match.holes import Attention, Block, Branch, Features, Hole, Pointwise, Projection
from gatec.match.pattern import Match, Near, Pattern, here
from gatec.match.terms import Linear, Part, Table, Term

__all__ = [
    "Attention", "Block", "Branch", "Canon", "Features", "Flow", "Hole", "Linear", "Match", "Near", "Part", "Pattern", "Pointwise",
    "Projection", "Table", "Term", "here",
]  # fmt: skip
