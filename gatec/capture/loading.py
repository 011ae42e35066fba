"""State dicts on their way into a rewritten module."""

from __future__ import annotations

from typing import Any

from torch import nn


def load(self: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """As the module's own class loads, after the edits have seen what is about to be loaded: newest first."""
    unit: Any = self.__dict__.get("_gatec")
    for edit in reversed(unit.edits if unit else ()):
        if not edit.only_fuses:
            edit.loads(self, state, prefix)
    own: Any = unit.original if unit else type(self).__mro__[1]
    own._load_from_state_dict(self, state, prefix, *rest)
