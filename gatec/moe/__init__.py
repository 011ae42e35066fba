"""Mixtures of experts: routers, and the way of tokens to their experts and back."""

from gatec.moe.pairs import Pairs, pairs_of
from gatec.moe.routers import ROUTERS, Router, router_named

__all__ = ["ROUTERS", "Pairs", "Router", "pairs_of", "router_named"]
