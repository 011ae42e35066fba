"""A labelled snippet is a small module, the kinds that it holds, and an example input."""

import torch

SNIPPETS = []

D, H = 8, 12
TOKENS = torch.linspace(-1, 1, 2 * 6 * D).sin().reshape(2, 6, D)  # batch, positions, features
ROWS = TOKENS.flatten(0, 1)
IMAGE = torch.linspace(-3, 3, 2 * D * 5 * 7).sin().reshape(2, D, 5, 7)
SERIES = torch.linspace(-3, 3, 2 * D * 11).sin().reshape(2, D, 11)  # batch, channels, time
STEP = TOKENS[:, 0]
STATE = TOKENS[:, 1]
COND = TOKENS[:, 2]
IDS = torch.tensor([[1, 2, 3, 0, 5, 6], [6, 5, 4, 3, 0, 0]])


class Snippet:
    def __init__(self, build, kinds, given):
        self.build, self.kinds, self.given, self.name = build, sorted(kinds), given, build.__name__


def has(*kinds, given=(TOKENS,)):
    """The class below builds a module with these gates, and with no others."""

    def register(build):
        SNIPPETS.append(Snippet(build, kinds, given))
        return build

    return register


def looks_like(given=(TOKENS,)):
    """The class below has something that looks like a gate."""
    return has(given=given)
