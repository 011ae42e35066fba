"""Regions: the pointwise nodes around a gate that one kernel computes, and what flows into them."""

from gatec.regions.convolutions import window
from gatec.regions.growing import around, gates, grown, regions, surveyed
from gatec.regions.nodes import POINTWISE, convolves
from gatec.regions.recurrences import parts
from gatec.regions.region import Region, function, graph_of, named
from gatec.regions.surroundings import Surroundings, transforms

__all__ = ["POINTWISE", "Region", "Surroundings", "around", "convolves", "function", "gates", "graph_of", "grown", "named",
           "parts", "regions", "surveyed", "transforms", "window"]  # fmt: skip
