"""Tensors seen through gates: a module reads its weight times the factors of its slots, and keeps the weight itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gatec.pruning.forms import ChannelGate

SEEN = "_gatec_masks"
FACTOR, SHUT, SILENT = "factor", "shut", "silent"


class Mask(NamedTuple):
    """The gate of one dimension of a parameter: `positions` give each position's slot, `size` where it has none.

    `role` says what a forward sees: FACTOR the parameter times the gate's factors, SHUT the parameter without what is
    closed, SILENT the whole parameter, since nobody reads the slots that are closed.
    """

    gate: ChannelGate
    dim: int
    positions: Tensor
    role: str

    def of(self, value: Tensor) -> Tensor:
        return value if self.role == SILENT else self.folded(value)

    def folded(self, value: Tensor) -> Tensor:
        """The parameter as it is once the gate is decided."""
        factors = self.gate() if self.role == FACTOR else (self.gate() != 0).detach()
        whole = torch.cat([factors.to(value.dtype), factors.new_ones(1, dtype=value.dtype)])
        shape = [-1 if n == self.dim else 1 for n in range(value.dim())]
        return value * whole[self.positions.to(value.device)].reshape(shape)


_made: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def mask(module: nn.Module, name: str, one: Mask) -> None:
    """Let a module see its parameter or buffer `name` through one more gate."""
    table = vars(module).setdefault(SEEN, {})
    table[name] = [*table.get(name, ()), one]
    plain = type(module).__mro__[1] if hasattr(type(module), "_gatec_plain") else type(module)
    module.__class__ = _class(plain, tuple(sorted(table)))


def unmask(module: nn.Module) -> None:
    """The module as it was, its parameters times what the gates settled for."""
    for name, masks in vars(module)[SEEN].items():
        value = _own(module, name)
        seen = value.detach()
        for one in masks:
            seen = one.folded(seen)
        value.data = seen.detach()
    module.__class__ = type(module).__mro__[1]
    del vars(module)[SEEN]
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]


def masked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from ((path, m) for path, m in model.named_modules() if SEEN in vars(m))


def _class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    if (plain, names) not in _made:
        space: dict[str, Any] = {name: property(_seen(name)) for name in names}
        space |= {"_gatec_plain": plain, "__module__": plain.__module__, "__reduce_ex__": _reduced}
        if issubclass(plain, nn.RNNBase):
            space["_flat_weights"] = property(
                lambda self: [getattr(self, n) for n in self._flat_weights_names], lambda *_: None
            )
        _made[plain, names] = type(plain.__name__, (plain,), space)
    return _made[plain, names]


def _seen(name: str) -> Callable[[nn.Module], Tensor]:
    def seen(self: nn.Module) -> Tensor:
        value = _own(self, name)
        for one in vars(self)[SEEN][name]:
            value = one.of(value)
        return value

    return seen


def _own(module: nn.Module, name: str) -> Tensor:
    value = module._parameters.get(name, module._buffers.get(name))
    assert value is not None
    return value


def _reduced(self: nn.Module, _: int) -> Any:
    return _again, (type(self)._gatec_plain, tuple(sorted(vars(self)[SEEN]))), self.__getstate__()  # type: ignore[attr-defined]


def _again(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    kind = _class(plain, names)
    return kind.__new__(kind)
