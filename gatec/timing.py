"""measure(): the report with what can only be seen by running: times, which experts are used, loss against active share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gatec.capture import Call, unit_of, untouched
from gatec.dispatch.measure import race
from gatec.errors import GatecError
from gatec.moe import Router
from gatec.pipeline import prepare
from gatec.program import Program
from gatec.report import Cost, Report, report
from gatec.reverting import revert
from gatec.verify import copied, forward

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
LIMIT = 400.0  # milliseconds for both sides of one unit, once there are enough rounds


def measure(model: nn.Module, inputs: Any = None, *, loss: Callable[[nn.Module], float] | None = None,
            shares: Iterable[float] = SHARES) -> Report:  # fmt: skip
    """The report of the last conversion, measured on this machine; the model is not changed.

    Each rewritten module runs its recorded call in turns with the same module of the reverted model (medians; only its own
    time where the model cannot be reverted), and the model runs once while choices of experts are counted. With
    `loss(model)` it is asked for its loss at each of `shares` of active experts.
    """
    found, program = report(model), prepare(model, inputs)
    dense = _dense(model)
    times = {unit: _times(program, unit, dense) for unit in dict.fromkeys(c.unit for c in found.layers)}
    with counted(model) as usage:
        forward(model, program)
    layers = tuple(_measured(c, times[c.unit], usage, model) for c in found.layers)
    return replace(found, layers=layers, losses=tuple(losses(model, loss, shares)) if loss else ())


def _dense(model: nn.Module) -> nn.Module | None:
    try:
        return revert(model)
    except GatecError:
        return None


def _times(program: Program, path: str, dense: nn.Module | None) -> tuple[float, float | None]:
    """Median seconds of one call of a unit, and of the same call of the user's own module."""
    call, ours = program.calls[path][0], program.module(path)
    theirs = ours if dense is None else dense.get_submodule(path)
    with torch.no_grad(), untouched(ours), untouched(theirs):
        raced = race(lambda: _run(ours, call), lambda: _run(theirs, call), _sample, LIMIT)
    mine, _, other = raced.summary
    return mine / 1e3, None if dense is None else other / 1e3


def _run(module: nn.Module, call: Call) -> Any:
    return module(*call.args, **call.kwargs)


def _sample(run: Callable[[], Any]) -> float:
    """Milliseconds of one run."""
    _settled()
    start = time.perf_counter()
    run()
    _settled()
    return (time.perf_counter() - start) * 1e3


def _settled() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measured(cost: Cost, times: tuple[float, float | None], usage: dict[nn.Module, Tensor], model: nn.Module) -> Cost:
    seen = [n for m, n in usage.items() if cost.experts and _within(model, cost, m) and n.numel() == cost.experts]
    shares = tuple((seen[0] / seen[0].sum().clamp_min(1)).tolist()) if len(seen) == 1 else ()
    return replace(cost, seconds=times[0], seconds_before=times[1], usage=shares)


def _within(model: nn.Module, cost: Cost, router: nn.Module) -> bool:
    """Whether a router is what this gate added to its unit."""
    module = model.get_submodule(cost.unit)
    unit = unit_of(module)
    mine = [r for r in (unit.edits if unit else ()) if r.name == cost.gate and r.site_under(cost.unit) == cost.site]
    return any(module.get_submodule(p) is router for r in mine for p in r.added.values() if _is_module(module, p))


def _is_module(module: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name in module.get_submodule(owner)._modules


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """How often each expert is chosen, by router, while the body runs the model."""
    seen: dict[nn.Module, Tensor] = {}

    def count(router: nn.Module, _: Any, routed: Any) -> None:
        assert isinstance(router, Router)
        found = (router.dense(routed) != 0).sum(0).cpu().double()
        seen[router] = seen[router] + found if router in seen else found

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, Router)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def losses(
    model: nn.Module, loss: Callable[[nn.Module], float], shares: Iterable[float]
) -> Iterator[tuple[float, float]]:
    """(active share, loss) with more or fewer experts for each token than the model was converted with."""
    counts = [m.experts for m in model.modules() if isinstance(m, Router) and m.fixed]
    if not counts:
        raise GatecError("routers that choose a number of experts", found=f"none in {type(model).__name__}",
                         hint='gatec.convert(model, "moe")')  # fmt: skip
    for share in dict.fromkeys(round(max(1, s * max(counts))) / max(counts) for s in sorted(shares)):
        with torch.no_grad():
            value = float(loss(with_share(model, share)))
        yield share, value


def with_share(model: nn.Module, share: float) -> nn.Module:
    """A copy whose routers choose this share of their experts."""
    model = copied(model)
    for router in (m for m in model.modules() if isinstance(m, Router) and m.fixed):
        router.top_k = min(max(1, round(share * router.experts)), router.experts)
    for unit in filter(None, map(unit_of, model.modules())):
        unit.graphs.clear()
    return model
