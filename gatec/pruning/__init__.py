"""Pruning: groups of slots, gates on them, and models without what the gates closed."""

from gatec.pruning.budgets import budget
from gatec.pruning.closing import close
from gatec.pruning.compacting import narrow
from gatec.pruning.forms import FORMS, Annealed, ChannelGate, hardened
from gatec.pruning.gating import channel_gates, closed, gated_again, has_gates, prune
from gatec.pruning.group import Group, Groups, groups
from gatec.pruning.importance import group_lasso
from gatec.pruning.optimizers import remapped
from gatec.pruning.plan import Plan, carried_out
from gatec.pruning.profiling import profile
from gatec.pruning.schedules import schedule

__all__ = [
    "FORMS", "Annealed", "ChannelGate", "Group", "Groups", "Plan", "budget", "carried_out", "channel_gates", "close", "closed",
    "gated_again", "group_lasso", "groups", "hardened", "has_gates", "narrow", "profile", "prune", "remapped", "schedule",
]  # fmt: skip
