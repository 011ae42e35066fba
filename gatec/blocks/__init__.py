"""Whole blocks taken out of the chains that run them: places, layer numbers, configs."""

from gatec.blocks.chains import removed
from gatec.blocks.passing import pass_by
from gatec.blocks.rebuilt import says_so
from gatec.blocks.recipe import BLOCKS, PASSED, replayed, shifted
from gatec.blocks.shared import AND, SHARED, shared

__all__ = ["AND", "BLOCKS", "PASSED", "SHARED", "pass_by", "removed", "replayed", "says_so", "shared", "shifted"]
