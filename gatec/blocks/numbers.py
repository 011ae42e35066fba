"""Modules that know their place in a chain, as attention layers with a key-value cache do."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial

from torch import nn

from gatec.errors import Refused
from gatec.rewrite import Undo

NUMBER = re.compile(r"(layer|block|depth)_?(idx|id|index|number|num)")
COUNT = re.compile(r"layer|depth|block")


def renumbered(outer: str, container: nn.Module, gone: list[int], undo: Undo) -> None:
    """Give the modules of the blocks that stay the numbers of their new places. Raises Refused for other numbers."""
    for (below, name), values in numbers(container).items():
        firsts = {value - i for i, value in values.items()}
        if len(firsts) > 1:
            raise Refused(f"{outer}.*.{below}.{name} is no place in {outer}".replace("..", "."))
        for i, value in values.items():
            module = list(container.children())[i].get_submodule(below)
            undo.append(partial(setattr, module, name, value))
            setattr(module, name, value - sum(g < i for g in gone))


def numbers(container: nn.Module) -> dict[tuple[str, str], dict[int, int]]:
    """(path below the block, attribute) -> block -> number, for whatever differs from block to block."""
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for i, block in enumerate(container.children()):
        for below, module in block.named_modules():
            for name, value in vars(module).items():
                if type(value) is int and NUMBER.fullmatch(name):
                    found[below, name][i] = value
    return {k: v for k, v in found.items() if len(v) == 1 or len(set(v.values())) > 1}
