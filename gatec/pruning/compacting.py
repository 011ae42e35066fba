"""Closed channel gates become smaller tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from gatec.axes import told
from gatec.capture import emptied, evaluating, untouched
from gatec.errors import GatecError, first_line, in_short
from gatec.history import forgotten, remember
from gatec.inputs import one_call
from gatec.program import Edit
from gatec.pruning.configuring import configured
from gatec.pruning.exact import same_draws
from gatec.pruning.gating import closed, ungate
from gatec.pruning.group import Groups, groups, unreached
from gatec.pruning.plain import plain
from gatec.pruning.plan import Plan, carried_out
from gatec.pruning.removing import Removal, removal
from gatec.pruning.spending import Spent
from gatec.report import Report
from gatec.verify import distance


def narrow(model: nn.Module, inputs: Any, undo: list[Callable[[], Any]]) -> Report:
    """Fold the gates of a model into its weights and remove what is closed, in place; what came of each group."""
    plain(model)
    args, kwargs = one_call(model, inputs)
    emptied(model, args, kwargs)
    masks = {name: np.asarray(mask) for name, mask in closed(model).items()}
    before = _as_gated(model, args, kwargs)
    ungate(model)
    found = groups(model, inputs)
    _known(model, masks, found)
    whole = {n: _one_left(m) for n, m in masks.items()}
    wanted = removal(model, whole, args, kwargs)
    whole_cost, missed = Spent.of(model, args, kwargs), _missed(model, found)
    carried_out(model, wanted.plan, undo)
    said = configured(model, wanted.walk, wanted.atoms, wanted.plan, args, kwargs, undo) if wanted.plan.kept else ""
    try:
        after, cost = _output(model, args, kwargs), Spent.of(model, args, kwargs)
    except (RuntimeError, ValueError) as e:
        raise GatecError("sizes that the model's operators take", found=first_line(e),
                         hint="gatec.close(model, to=..., multiple=8) keeps multiples of 8") from e  # fmt: skip
    drift = distance(told(after), told(before))
    _proven(model, drift)
    forgotten(model, "channels")
    remember(model, {"removed": wanted.plan.data()}, undo)
    narrowed = whole_cost.beside(cost, macs(found, Plan()), macs(found, wanted.plan))
    words = (
        f"{narrowed[0]}, drift {wanted.drift:.1e} in float64, {drift:.1e} in its own dtype"
        f"{'; ' * bool(said)}{said}{missed}"
    )
    edits = [*(_edit(n, m, found, wanted) for n, m in masks.items()), Edit("compact", "", "put", words, wanted.drift)]
    return Report(tuple(edits), drift, widths=tuple(_widths(found, wanted)), narrowed=narrowed)


def _proven(model: nn.Module, drift: float) -> None:
    """What was proven in float64 holds in the model's own dtype as far as that can tell."""
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if not drift <= max(torch.finfo(kind).eps for kind in kinds) ** 0.25:
        raise GatecError(f"a compacted {type(model).__name__} that computes what the gated one does",
                         found=f"an output that moves by {drift:.1e}",
                         hint="leave groups out: gatec.prune(model, kinds=..., only=...)")  # fmt: skip


def _as_gated(model: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return _output(model, args, kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        raise GatecError(f"a gated {type(model).__name__} that runs", found=in_short(e),
                         hint="gatec.compact(model, inputs) with what it takes; layers replaced since gatec.prune "
                         "have to be of the same sizes") from e  # fmt: skip


def _missed(model: nn.Module, found: Groups) -> str:
    names = unreached(model, found.walk)
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"; the forward has not come by {names[0]}{rest}, which may count on the old sizes" if names else ""


def _widths(found: Groups, done: Removal) -> Iterator[tuple[str, str, int, int]]:
    for group in found.free:
        gone = int(done.closed[group.name].sum()) if group.name in done.closed else 0
        yield group.name, group.kind, group.size - gone, group.size


def _known(model: nn.Module, masks: dict[str, Any], found: Groups) -> None:
    names = {g.name: g for g in found}
    for name, mask in masks.items():
        if name not in names or names[name].size != mask.size or names[name].refused:
            raise GatecError(f"the groups that the gates of {type(model).__name__} were put on",
                             found=f"no {name} of {mask.size} slots", hint="the model was changed since gatec.prune")  # fmt: skip


def _one_left(mask: Any) -> Any:
    """A dimension keeps one slot, in zeros, where all are closed."""
    kept = mask.copy()
    if kept.all():
        kept[0] = False
    return kept


def _edit(name: str, mask: Any, found: Groups, done: Removal) -> Edit:
    gone, kind = int(done.closed[name].sum()) if name in done.closed else 0, found[name].kind
    said = f"{gone} of {mask.size} {kind} removed"
    if gone < mask.sum():
        why = done.left.get(name, "one is kept where all are closed")
        said += f"; {int(mask.sum()) - gone} closed ones stay, in zeros: {why}"
    return Edit("compact", name, "put" if gone or not mask.any() else "left", said)


def macs(found: Groups, plan: Plan) -> dict[str, float]:
    """Multiplications of each parameter with what flows in, in the recorded forward."""
    shapes = {n: p.shape for n, p in found.walk.learned.items()}
    share = {
        name: math.prod(len(at) / shapes[name][dim] for dim, at in dims.items())
        for name, dims in plan.kept.items()
        if name in shapes
    }
    return {name: cost * share.get(name, 1.0) for name, cost in found.walk.macs.items()}


@torch.no_grad()
def _output(model: nn.Module, args: Any, kwargs: Any) -> Any:
    with evaluating(model), untouched(model), same_draws():
        return model(*args, **kwargs)
