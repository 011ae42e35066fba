"""profile(): what the operators of a gated model take on this machine at several widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from gatec.axes import Ledger
from gatec.capture import evaluating, untouched
from gatec.clocks import Timer, seconds
from gatec.errors import GatecError
from gatec.inputs import one_call
from gatec.pruning.costs import Sum, Table, Tables, counted, whole
from gatec.pruning.gating import channel_gates, gates_of, opened
from gatec.pruning.group import grouped
from gatec.pruning.operators import Operator, Times

TURNS = 2  # of the whole forward, before and after its operators


def profile(model: nn.Module, inputs: Any = None, *, timer: Timer = seconds) -> dict[str, float]:
    """Count, and measure on this machine, what a gated model costs on these inputs: from then on `gatec.budget` and
    `gatec.close` know its latency. What it costs with all of its slots is returned.

    Every operator that sees gated groups is run alone at several of their widths, and what lies between is interpolated;
    what the whole forward takes beside them stays as it is. Equal operators are run once.

    timer    timer(run, *args, **kwargs) gives the seconds of run(*args, **kwargs)
    """
    gates, sizes = gates_of(model), {name: gate.size for name, gate in channel_gates(model).items()}
    plain = opened(model)
    args, kwargs = one_call(plain, inputs)
    ledger = Ledger()
    found = grouped(plain, args, kwargs, ledger)
    names = {g.atom: g.name for g in found.free if sizes.get(g.name) == g.size}
    if len(names) < len(sizes):
        missing = next(name for name in sizes if name not in names.values())
        raise GatecError(f"inputs on which {type(model).__name__} has the groups that are gated", found=f"no {missing}",
                         hint="gatec.profile(model, inputs) with what gatec.prune was given")  # fmt: skip
    with torch.no_grad(), evaluating(plain), untouched(plain):
        before = [timer(plain, *args, **kwargs) for _ in range(TURNS)]
        latency = tables(ledger, names, sizes, timer)
        _scaled(latency, sizes, min(*before, *(timer(plain, *args, **kwargs) for _ in range(TURNS))))
    gates.cost({**counted(found, ledger, names), "latency": latency}, sizes)
    return dict(gates.wholes)


def tables(ledger: Ledger, names: Mapping[Any, str], sizes: Mapping[str, int], timer: Timer) -> Tables:
    """The seconds of each gated operator of a forward by its widths."""
    rest, found, known = Sum(), dict[Any, Table](), dict[Any, Times]()
    for call in ledger.calls:
        one = Operator(call, names, sizes)
        if not one.factors:
            continue
        if one.key not in known:
            known[one.key] = one.taken(timer)
        times = known[one.key]
        if isinstance(times, float):
            rest.add(times / one.made.of(sizes), one.made)
        elif times is not None:
            table = found.setdefault((one.factors, one.levels), Table(one.factors, one.levels, np.zeros_like(times)))
            table.taken += times
    return Tables(rest, list(found.values()))


def _scaled(found: Tables, sizes: Mapping[str, int], taken: float) -> None:
    """Operators alone may take longer than among others; what they do not take of a forward is the same at all widths."""
    alone = whole(found, sizes)
    if alone > taken:
        for table in found.tables:
            table.taken *= taken / alone
        found.rest.rates = {factors: rate * taken / alone for factors, rate in found.rest.rates.items()}
    else:
        found.rest.fixed = taken - alone
