"""Removed and shared blocks in a recipe: blocks are gone first, and every other step names what is left by its new place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from gatec.blocks.chains import place, removed
from gatec.blocks.passing import pass_by
from gatec.blocks.shared import AND, SHARED, shared
from gatec.capture import Call
from gatec.errors import GatecError, Refused

BLOCKS, PASSED = "blocks", "passed blocks"
Step = dict[str, Any]


def shifted(steps: Iterable[Step], kind: str, paths: list[str], orders: dict[str, list[str]]) -> list[Step]:
    """The steps of a model from which the blocks at `paths` are removed; `orders` are the names in their containers."""
    steps = list(steps)
    whole = [s for s in steps if s.get("kind") in (BLOCKS, PASSED)]
    rest = [s for s in steps if s.get("kind") not in (BLOCKS, PASSED)]
    new: dict[str, str | None] = _names(paths, orders) if kind == BLOCKS else dict.fromkeys(paths)
    moved = [_followed(s, new) for s in rest]
    kept = [s for s in moved if s.get("sites", s.get("compact", True))]
    return [*whole, {"compact": sorted(paths), "kind": kind}, *kept]


def _followed(step: Step, new: dict[str, str | None]) -> Step:
    """A step with what it names under the new names."""
    step = {**step, **{k: _renamed(step[k], new) for k in ("sites", "compact") if k in step}}
    if "removed" in step:
        tables = {k: _keys(v, new) if isinstance(v, dict) else v for k, v in step["removed"].items()}
        return {**step, "removed": tables}
    return step


def _keys(table: dict[str, Any], new: dict[str, str | None]) -> dict[str, Any]:
    return {name: value for old, value in table.items() if (name := _moved(old, new)) is not None}


def _names(paths: list[str], orders: dict[str, list[str]]) -> dict[str, str | None]:
    """Old path -> new path of every block in a chain that was shortened; None for those that are gone."""
    found: dict[str, str | None] = {}
    for outer, order in orders.items():
        gone = {p.rpartition(".")[2] for p in paths if p.rpartition(".")[0] == outer}
        now = {old: new for new, old in place(order, gone).items()}
        found |= {
            f"{outer}.{name}".lstrip("."): f"{outer}.{now[name]}".lstrip(".") if name in now else None for name in order
        }
    return found


def _renamed(sites: list[str], new: dict[str, str | None]) -> list[str]:
    moved = [[name for part in site.split(AND) if (name := _moved(part, new)) is not None] for site in sites]
    return [AND.join(parts) for parts, site in zip(moved, sites, strict=True) if len(parts) > (AND in site)]


def _moved(site: str, new: dict[str, str | None]) -> str | None:
    block = next((b for b in new if site == b or site.startswith(f"{b}.")), None)
    if block is None:
        return site
    to = new[block]
    return None if to is None else to + site.removeprefix(block)


def replayed(model: nn.Module, kind: str, paths: list[str], calls: Callable[[], dict[str, list[Call]]]) -> None:
    """Do to the blocks of a fresh model as a recipe says; `calls` are those of one recorded forward."""
    try:
        for path in (part for group in paths for part in group.split(AND)):
            model.get_submodule(path)
        if kind == BLOCKS:
            removed(model, paths, [])
            return
        if kind == SHARED:
            for group in paths:
                shared(model, group.split(AND), [])
            return
        recorded = calls()
        for path in paths:
            pass_by(model, path, recorded[path][0], [])
    except (AttributeError, KeyError, Refused) as e:
        raise GatecError(f"the blocks of {type(model).__name__} that were removed or shared", found=str(e) or type(e).__name__,
                         hint="load into a fresh model of the configuration from before gatec.compact") from None  # fmt: skip
