"""From a declaration to a changed model: find the places, decide, splice, compare; every edit can be undone and replayed."""

from gatec.rewrite.install import copied, installed
from gatec.rewrite.put import added, put
from gatec.rewrite.removal import take_out
from gatec.rewrite.replay import NOWHERE, Rewrite, children_of
from gatec.rewrite.spot import site_name
from gatec.rewrite.undo import Undo, back
from gatec.rewrite.units import put_back

__all__ = [
    "NOWHERE",
    "Rewrite",
    "Undo",
    "added",
    "back",
    "children_of",
    "copied",
    "installed",
    "put",
    "put_back",
    "site_name",
    "take_out",
]
