"""compact(): closed gates become smaller models. A file for each kind of what gates close, and a list of the kinds."""

from gatec.compaction.compact import KINDS, compact

__all__ = ["KINDS", "compact"]
