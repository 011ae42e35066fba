"""Loops over time that a forward writes in Python, found in its graph and run for all steps at once."""

from gatec.reroll.put import reroll_program
from gatec.reroll.rewrite import Reroll

__all__ = ["Reroll", "reroll_program"]
