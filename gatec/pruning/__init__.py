"""Pruning: groups of slots, gates on them, and models without what the gates closed."""

from gatec.pruning.budgets import budget, close
from gatec.pruning.compacting import narrow
from gatec.pruning.forms import FORMS, ChannelGate
from gatec.pruning.gating import channel_gates, closed, gated_again, has_gates, prune
from gatec.pruning.group import Group, Groups, groups
from gatec.pruning.optimizers import remapped
from gatec.pruning.plan import Plan, carried_out

__all__ = [
    "FORMS", "ChannelGate", "Group", "Groups", "Plan", "budget", "carried_out", "channel_gates", "close", "closed",
    "gated_again", "groups", "has_gates", "narrow", "prune", "remapped",
]  # fmt: skip
