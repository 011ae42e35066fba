"""State dicts of the user's own model, loaded into a rewritten one: moved into its order, its gates as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gatec.capture import unit_of
from gatec.errors import GatecError
from gatec.layers import attribute
from gatec.match import Linear, Part
from gatec.rewrite.units import moving
from gatec.widening import Wide

Layers = dict[str, Linear | Part]


def own(module: nn.Module, added: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """What a rewrite added to its unit, as a state dict of the unit names it."""
    for path in added.values():
        value = attribute(module, path)
        if isinstance(value, nn.Module):
            yield from ((f"{path}.{n}", v) for n, v in value.state_dict(keep_vars=True).items())
        else:
            yield path, value


def is_dense(state: dict[str, Any], prefix: str, module: nn.Module, added: dict[str, str], layers: Layers) -> bool:
    """Whether a state dict has tensors of these layers, and nothing of what was added to them."""
    held = any(key == start or key.startswith(f"{start}.") for start in _starts(prefix, layers) for key in state)
    return held and not any(prefix + name in state for name, _ in own(module, added))


def _starts(prefix: str, layers: Layers) -> Iterator[str]:
    for spec in layers.values():
        yield (prefix + spec.weight).removesuffix(".")


def fits(
    state: dict[str, Any], prefix: str, module: nn.Module, layers: dict[str, Linear], wide: tuple[Wide, ...]
) -> None:
    """Raise where the tensors of these layers have other sizes than the module's, or than those that these are made from."""
    plans = {plan.path: plan for plan in wide}
    for _, _, path in moving(layers):
        value, mine = state.get(prefix + path), attribute(module, path)
        sizes = [mine.shape, *([plans[path].before(mine.shape)] if path in plans else [])]
        if isinstance(value, Tensor) and value.shape not in sizes:
            raise GatecError("a state dict that fits the rewritten model", where=prefix + path,
                             found=f"{list(value.shape)} for {list(mine.shape)}; nothing was loaded",
                             hint="load a model of the same configuration")  # fmt: skip


def widened(state: dict[str, Any], prefix: str, wide: tuple[Wide, ...]) -> bool:
    """Make the tensors of a dense state dict as wide as the module's; False where they are so already."""
    held = [plan for plan in wide if isinstance(state.get(prefix + plan.path), Tensor)]
    if any(state[prefix + plan.path].shape[plan.dim] != plan.size for plan in held):
        return False
    for plan in held:
        state[prefix + plan.path] = plan.made(state[prefix + plan.path])
    return True


def all_fit(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before anything is loaded into a model: what goes into its rewritten modules has to fit."""
    for path, module in model.named_modules():
        unit = unit_of(module)
        for edit in unit.edits if unit else ():
            if not edit.only_fuses:
                edit.fits(module, state, f"{prefix}{path}." if path else prefix)
