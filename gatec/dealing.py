"""One conversion by several processes: places are dealt out, and what is born at each is broadcast to all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from gatec.capture import unit_of
from gatec.errors import GatecError
from gatec.gate import Gate
from gatec.layers import attribute
from gatec.program import Edit, Program
from gatec.rewrite import Rewrite, Undo, put

PLAIN = (int, float, str, bool, type(None))
Group = dist.ProcessGroup


def dealt(gate: Gate, options: dict[str, Any], program: Program, undo: Undo, group: Group, *,
          only: Callable[[str], bool] | None = None, tick: Callable[[str], Any] | None = None) -> list[Edit]:  # fmt: skip
    """The edits of one gate, the same on every process, each made by one of them.

    With an option that is not plain data, such as calibration inputs, a place may depend on those before it: then every
    process makes all edits, and the first one's values are taken.
    """
    before, rank, size = len(program.edits), dist.get_rank(group), dist.get_world_size(group)
    planned = put(gate, options, program, [], dry=True, only=only)
    sites = list(dict.fromkeys(e.site for e in planned if e.verdict == "put"))
    _agreed(sites, program, group)
    apart = all(isinstance(v, PLAIN) for v in options.values())
    owner = {site: i % size if apart else 0 for i, site in enumerate(sites)}
    mine = {s for s in sites if not apart or owner[s] == rank}
    made = _together(lambda: put(gate, options, program, undo, only=mine.__contains__, tick=tick), group)
    edits = [e for r, found in enumerate(made) for e in found if owner[e.site] == r]
    others = {e.site for e in edits if e.verdict == "put"} - mine
    put(gate, options, program, undo, only=others.__contains__, structure=True)
    for site, value in _born(gate, program.model):
        if site in owner:
            if site in others:
                undo.append(partial(value.copy_, value.clone()))
            dist.broadcast(value, group=group, group_src=owner[site])
    del program.edits[before:]
    program.edits.extend(_merged(planned, edits))
    return program.edits[before:]


def _agreed(sites: list[str], program: Program, group: Group) -> None:
    """Refuse models that differ between the processes."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, sites, group=group)
    if any(other != found[0] for other in found):
        raise GatecError("the same model in every process", found="places that differ between them",
                         where=type(program.model).__name__, hint="build and load it in the same way everywhere")  # fmt: skip


def _together(make: Callable[[], list[Edit]], group: Group) -> list[list[Edit]]:
    """What each process makes; an error in one is an error in all, so that none waits for ever."""
    mine, trouble = list[Edit](), None
    try:
        mine = make()
    except Exception as e:
        trouble = e
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, (mine, str(trouble) if trouble else ""), group=group)
    if trouble is not None:
        raise trouble
    for rank, (_, words) in enumerate(found):
        if words:
            raise GatecError(
                "a conversion that succeeds in every process", found=words.splitlines()[0], where=f"rank {rank}"
            )
    return [edits for edits, _ in found]


def _born(gate: Gate, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the gate's birth may have written, by site: of the layers it stands between, and what it added."""
    for path, module in model.named_modules():
        unit = unit_of(module)
        for rewrite in (r for r in (unit.edits if unit else ()) if isinstance(r, Rewrite) and r.name == gate.name):
            layers = [p for k in rewrite.linears.values() for p in (k.weight, k.bias) if p is not None]
            seen = dict.fromkeys(attribute(module, p) for p in layers)
            for value in (attribute(module, p) for p in rewrite.added.values()):
                own = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]
                seen.update(dict.fromkeys(own))
            yield from ((rewrite.site_under(path), t.detach()) for t in seen)


def _merged(planned: list[Edit], made: list[Edit]) -> Iterator[Edit]:
    """The planned edits, those that could be put as they were made."""
    results: dict[str, list[Edit]] = defaultdict(list)
    for edit in made:
        results[edit.site].append(edit)
    for edit in planned:
        yield results[edit.site].pop(0) if edit.verdict == "put" else edit
