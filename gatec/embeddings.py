"""Embeddings without some of their rows: ids keep their meaning, and those that are gone find one row of zeros."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.errors import GatecError, Refused
from gatec.rewrite import Undo

ROWS = "embedding rows"


class Kept(nn.Embedding):
    """The rows that are kept, and a row of zeros, the last, which does not learn; `places` says where each id is found."""

    places: Tensor

    def __init__(self, weight: Tensor, places: Tensor, like: nn.Embedding) -> None:
        super().__init__(weight.shape[0], weight.shape[1], padding_idx=-1, scale_grad_by_freq=like.scale_grad_by_freq,
                         sparse=like.sparse, _weight=weight)  # fmt: skip
        self.weight.requires_grad_(like.weight.requires_grad)
        self.register_buffer("places", places)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            self.places[input], self.weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse
        )


def kept(table: nn.Embedding, factors: Tensor) -> Kept:
    """The table with every row times its factor, and without those whose factor is zero."""
    stay = (factors != 0).nonzero().flatten()
    pad = table.padding_idx
    if pad is not None and bool(factors[pad] != 0):
        if bool(table.weight[pad].any()):
            raise Refused(
                f"its padding row, {pad}, is not zero, and it could not learn any more beside the row of zeros"
            )
        stay = stay[stay != pad]
    weight = table.weight.detach()[stay] * factors[stay].to(table.weight).unsqueeze(-1)
    places = torch.full((table.num_embeddings,), len(stay), dtype=torch.long, device=table.weight.device)
    places[stay] = torch.arange(len(stay), device=places.device)
    return Kept(torch.cat([weight, weight.new_zeros(1, weight.shape[1])]), places, table)


def replaceable(table: nn.Module, names: Iterable[str]) -> nn.Embedding:
    """Refuse a table whose rows must stay where they are."""
    others = list(names)
    if type(table) is not nn.Embedding:
        raise Refused(f"it is a {type(table).__name__}, whose forward is its own")
    if table.max_norm is not None:
        raise Refused("it rescales its rows while it runs (max_norm)")
    if "weight" not in table._parameters:
        raise Refused("its weight is computed (a parametrization)")
    if len(others) > 1:
        raise Refused(f"{others[0]} is shared with {others[1]}, whose rows would be gone with it")
    return table


def put(model: nn.Module, path: str, new: Kept, undo: Undo) -> None:
    outer, _, name = path.rpartition(".")
    owner = model.get_submodule(outer)
    undo.append(partial(setattr, owner, name, owner.get_submodule(name)))
    setattr(owner, name, new.train(owner.get_submodule(name).training))


def narrowed(model: nn.Module, paths: Iterable[str], shapes: dict[str, Any]) -> None:
    """Give the tables at `paths` the sizes of a saved compacted model; rows and places come from the checkpoint afterwards."""
    for path in paths:
        saved, table = shapes.get(f"{path}.weight"), dict(model.named_modules()).get(path)
        if saved is None or not isinstance(table, nn.Embedding):
            raise GatecError(f"the embeddings of {type(model).__name__} that were compacted", found=f"none at {path}",
                             hint="load into a fresh model of the same configuration")  # fmt: skip
        places = torch.zeros(table.num_embeddings, dtype=torch.long, device=table.weight.device)
        put(model, path, Kept(table.weight.detach().new_zeros(saved), places, table), [])
