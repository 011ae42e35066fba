"""Routers as regions: scores of a row, its best columns and their weights, in one op with one generated kernel."""

from gatec.routers.op import Router, op_routing, sides
from gatec.routers.region import Routing, routings

__all__ = ["Router", "Routing", "op_routing", "routings", "sides"]
