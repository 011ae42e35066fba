"""A config that says what a narrowed model is, where it can: what save_pretrained and from_pretrained count on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gatec.axes import Walk, told
from gatec.blocks.configs import on_meta
from gatec.capture import evaluating, untouched
from gatec.capture.spies import refill
from gatec.pruning.keeping import Closed, left
from gatec.pruning.plan import Plan
from gatec.verify import distance

ROUNDS = 3
UNSAID = (
    "its config does not say so: gatec.save keeps this model, save_pretrained would not "
    "(of equal layers without closed head dims, as close(uniform=True, multiple=8) makes them, it may)"
)


def configured(
    model: nn.Module, walk: Walk, closed: Closed, plan: Plan, args: Any, kwargs: Any, undo: list[Callable[[], Any]]
) -> str:
    """Change the numbers of a model's config so that a model built from it is this one; words where that does not go."""
    config = vars(model).get("config")
    if config is None or not hasattr(config, "__dict__"):
        return ""
    before = dict(vars(config))
    sizes = _news(walk, closed)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters()}
    made = copy.deepcopy(config)
    for name, value in _epsilons(plan, vars(config)).items():
        setattr(made, name, value)
    made = _fitted(model, made, sizes, wanted)
    if made is None or not _same(model, made, args, kwargs):
        return UNSAID
    undo.append(partial(refill, vars(config), before))
    vars(config).update(vars(made))
    return ""


def _news(walk: Walk, closed: Closed) -> dict[int, list[int]]:
    """What axes of each size have become, anywhere in the model."""
    found: dict[int, set[int]] = {}
    for numbers in walk.numbers.values():
        for size, axes in numbers.items():
            found.setdefault(size, set()).update(left(a, closed) for a in axes)
    return {size: sorted(new - {size}) for size, new in found.items() if size > 1 and new != {size}}


def _epsilons(plan: Plan, fields: dict[str, Any]) -> dict[str, float]:
    """Fields of a config that hold the epsilon of norms, all of which have another one now."""
    new = {v for numbers in plan.numbers.values() for v in numbers.values() if isinstance(v, float)}
    names = [n for n, v in fields.items() if isinstance(v, float) and "eps" in n and "norm" in n]
    return dict.fromkeys(names, new.pop()) if len(new) == 1 else {}


def _fitted(model: nn.Module, config: Any, sizes: dict[int, list[int]], wanted: dict[str, tuple[int, ...]]) -> Any:
    """Numbers one by one, each as it makes most parameters as large as they are; None where some never are."""
    names = [n for n, v in vars(config).items() if type(v) is int and v in sizes and not n.startswith("_")]
    choices = {n: [getattr(config, n), *sizes[getattr(config, n)]] for n in names}
    best = _fits(model, config, wanted)
    for _ in range(ROUNDS):
        for name in names:
            for value in set(choices[name]) - {getattr(config, name)}:
                trial = copy.deepcopy(config)
                setattr(trial, name, value)
                fits = _fits(model, trial, wanted)
                if fits > best:
                    config, best = trial, fits
        if best == len(wanted):
            return config
    return None


def _fits(model: nn.Module, config: Any, wanted: dict[str, tuple[int, ...]]) -> float:
    """How many parameters of a model from this config have the wanted sizes; half a one for each dimension."""
    built = on_meta(model, config)
    if built is None:
        return -1.0
    found = {n: tuple(p.shape) for n, p in built.named_parameters()}
    if set(found) != set(wanted):
        return -1.0
    return sum(sum(a == b for a, b in zip(found[n], wanted[n], strict=True)) / max(len(wanted[n]), 1) for n in wanted)


def _same(model: nn.Module, config: Any, args: Any, kwargs: Any) -> bool:
    """Whether a model that is built from the config and given the tensors of this one computes the same."""
    kind: Any = type(model)
    try:
        getattr(config, "validate", bool)()
    except Exception:  # a class of each library's own
        return False
    try:
        with torch.random.fork_rng():
            built = kind(config).to(next(model.parameters()).dtype)
        built.load_state_dict(model.state_dict())
        with torch.no_grad(), evaluating(model, built), untouched(model):
            moved = distance(told(built(*args, **kwargs)), told(model(*args, **kwargs)))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return False
    return moved <= 1e-5
