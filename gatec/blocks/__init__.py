"""Whole blocks taken out of the chains that run them: places, layer numbers, configs."""

from gatec.blocks.chains import removed
from gatec.blocks.passing import pass_by
from gatec.blocks.rebuilt import says_so
from gatec.blocks.recipe import BLOCKS, PASSED, replayed, shifted

__all__ = ["BLOCKS", "PASSED", "pass_by", "removed", "replayed", "says_so", "shifted"]
