"""Regions: the pointwise nodes around a gate that one kernel computes, and what flows into them."""

from gatec.regions.growing import around, gates, grown, regions, surveyed
from gatec.regions.nodes import POINTWISE
from gatec.regions.region import Region, named
from gatec.regions.surroundings import Surroundings, transforms

__all__ = ["POINTWISE", "Region", "Surroundings", "around", "gates", "grown", "named", "regions", "surveyed",
           "transforms"]  # fmt: skip
