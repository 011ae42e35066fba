"""Mixtures of experts: routers, and the way of tokens to their experts and back."""

import gatec.moe.fixed
import gatec.moe.masked
import gatec.moe.width  # noqa: F401 - these make their routers known
from gatec.moe import splitting
from gatec.moe.balance import losses, task
from gatec.moe.fitting import calibrate
from gatec.moe.health import Health, health, watching
from gatec.moe.mixture import mixture
from gatec.moe.native import upcycle
from gatec.moe.pairs import Pairs, pairs_of
from gatec.moe.pooled import Pooled
from gatec.moe.router import ROUTERS, Router, router, router_named
from gatec.moe.standin import StandIn

__all__ = [
    "ROUTERS",
    "Health",
    "Pairs",
    "Pooled",
    "Router",
    "StandIn",
    "calibrate",
    "health",
    "losses",
    "mixture",
    "pairs_of",
    "router",
    "router_named",
    "splitting",
    "task",
    "upcycle",
    "watching",
]
