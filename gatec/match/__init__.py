"""What is looked for: a canonical form in which every spelling of one computation is one term, and patterns over it."""

from gatec.match.canon import Canon
from gatec.match.pattern import Match, Near, Pattern, here
from gatec.match.terms import Linear, Table, Term

__all__ = ["Canon", "Linear", "Match", "Near", "Pattern", "Table", "Term", "here"]
