"""Pruning: groups of slots, gates on them, and models without what the gates closed."""

from gatec.pruning.forms import FORMS, ChannelGate
from gatec.pruning.gating import channel_gates, close, closed, prune
from gatec.pruning.groups import Group, Groups, groups

__all__ = ["FORMS", "ChannelGate", "Group", "Groups", "channel_gates", "close", "closed", "groups", "prune"]
