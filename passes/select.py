"""Feature-set gate: a learned factor on every row of an embedding, for ids that can be done without.

    before    e = table(ids)
    after     e = table(ids) * sigmoid(tau m[ids]) / sigmoid(m0)

Born neutral, to the bit: m = m0 and tau = 1. `gatec.anneal` lets tau grow while a penalty (`gatec.losses`, "select") pulls m down;
with `gatec.anneal(model, math.inf)` every row is open or shut, and `gatec.compact` removes those that are shut.
Lyu et al. 2023, https://arxiv.org/abs/2301.10909
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, GatecError, Selector


def embedded(ids: Tensor, table: nn.Embedding):
    return table(ids)


def check(site, table, *, start: float = 0.5) -> None:
    if not start > 0:
        raise GatecError("a start above 0, where rows are open", found=repr(start))
    if type(table.module).forward is not nn.Embedding.forward:
        site.refuse(
            f"{type(table.module).__name__} has a forward of its own, which may look up something else than its ids"
        )


def after(site, here, ids, table, *, start: float = 0.5):
    rows = table.module.num_embeddings
    return here * site.add("selector", lambda: Selector(rows, start, **site.like(table)), near=table)(ids)


def closes(site) -> Tensor:
    """True for every row whose factor is zero."""
    return site.added_value("selector").factors == 0


def factors(site) -> Tensor:
    return site.added_value("selector").factors


def merge(site) -> None:
    site.scale_rows("table", factors(site))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(12, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.table(x.abs().long() % 12).mean(-2))


class Tables(Words):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Embedding(5, 8, padding_idx=0)

    def forward(self, x):
        return super().forward(x) + self.other(x.abs().long() % 5).sum(-2)


class Shifted(nn.Embedding):
    def forward(self, mask):
        return super().forward(mask.long().cumsum(-1) % 12)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = Shifted(12, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.table(x.abs().round()).mean(-2))


class Twice(Words):
    def forward(self, x):
        return super().forward(x) + super().forward(x + 1)


X = (torch.linspace(-20, 20, 32).reshape(4, 8),)
GATE = Gate(
    before=(embedded,), after=after, check=check, closes=closes, of="embedding rows", factors=factors, merge=merge,
    cases=(
        Case("one table", Words, X),
        Case("two tables", Tables, X, put=2, options={"start": 0.1}),
        Case("one table in two places", Twice, X, refuses="is called 2 times in one forward"),
        Case("a table with a forward of its own", Positions, X, refuses="has a forward of its own"),
        Case("closed at first", Words, X, refuses="a start above 0, where rows are open", options={"start": -1.0}),
    ),
)  # fmt: skip
