"""Norms over fewer features, and attention of other widths, that compute what they did with what is gone in zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.pruning.attention import NarrowAttention


class ScaledNorm(nn.Module):
    """A norm by the root of the mean square, over d' of d features: f(s x) / s with s = sqrt(d' / d).

    The mean over d' of (s x)^2 is the mean over d of x^2 with zeros, whatever the norm's weight and epsilon are.
    """

    def forward(self, x: Tensor, *rest: Any, **more: Any) -> Any:
        scale = self.__dict__["_gatec_narrowed"]["share"] ** 0.5
        return super().forward(x * scale, *rest, **more) / scale


class CentredNorm(nn.Module):
    """A norm by mean and variance over d' of d features: both are counted over all d, of which d - d' are zero."""

    def forward(self, x: Tensor) -> Tensor:
        how = self.__dict__["_gatec_narrowed"]
        over = [n % x.dim() for n in how["over"]]
        whole = 1.0 / how["share"]  # features then for each that is left now
        mean = x.mean(over, keepdim=True) / whole
        var = ((x - mean) ** 2).mean(over, keepdim=True) / whole + (1 - 1 / whole) * mean**2
        return behind(self, (x - mean) * torch.rsqrt(var + epsilon(self)), how["features"] % x.dim())


class GroupedNorm(nn.Module):
    """A norm by mean and variance of each group of channels, of which d' of d are left."""

    def forward(self, x: Tensor) -> Tensor:
        whole = 1.0 / self.__dict__["_gatec_narrowed"]["share"]
        groups = x.reshape(x.shape[0], int(vars(self)["num_groups"]), -1)
        mean = groups.mean(-1, keepdim=True) / whole
        var = ((groups - mean) ** 2).mean(-1, keepdim=True) / whole + (1 - 1 / whole) * mean**2
        return behind(self, ((groups - mean) * torch.rsqrt(var + epsilon(self))).reshape(x.shape), 1)


def behind(norm: nn.Module, y: Tensor, features: int) -> Tensor:
    """What a norm's weight and bias, and its own layers such as an activation, make of normed features."""
    shape = [-1 if n == features else 1 for n in range(y.dim())]
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    y = y if weight is None else y * weight.reshape(shape)
    y = y if bias is None else y + bias.reshape(shape)
    for layer in norm.children():
        y = layer(y)
    return y


FORMS: dict[str, type[nn.Module]] = {
    "scaled": ScaledNorm,
    "centred": CentredNorm,
    "grouped": GroupedNorm,
    "attention": NarrowAttention,
}
EPSILONS = ("eps", "variance_epsilon", "epsilon")
_made: dict[tuple[str, type[nn.Module]], type[nn.Module]] = {}


def epsilon_name(module: nn.Module) -> str | None:
    return next((n for n in EPSILONS if isinstance(getattr(module, n, None), float)), None)


def epsilon(module: nn.Module) -> float:
    found: float = getattr(module, epsilon_name(module) or EPSILONS[0])
    return found


def ways(module: nn.Module, share: float) -> list[dict[str, Any]]:
    """The ways in which a norm over a `share` of its features may still be what it was."""
    found: list[dict[str, Any]] = [{"form": "scaled", "share": share}]
    if isinstance(getattr(module, "num_groups", None), int) and epsilon_name(module):
        found.append({"form": "grouped", "share": share})
    elif epsilon_name(module):
        over: tuple[list[int], ...] = ([-1], [1], [1, 2], [1, 2, 3])
        found += [{"form": "centred", "share": share, "over": o, "features": o[0]} for o in over]
    return found


def narrowed(module: nn.Module, how: dict[str, Any], undo: list[Callable[[], Any]]) -> None:
    """Make a module, in place, one of a class of its own class that counts the features that are gone."""
    if how.get("form") not in FORMS:
        raise GatecError("a form of narrowed modules", found=str(how.get("form")), hint=f"one of {', '.join(FORMS)}")
    before, told = type(module), module.__dict__.get("_gatec_narrowed")
    plain = before if told is None else before.__mro__[2]
    undo.append(lambda: _back(module, before, told))
    share = how.get("share", 1.0) * (told["share"] if told else 1.0)
    module.__dict__["_gatec_narrowed"] = {**how, "share": share}
    module.__class__ = _class(how["form"], plain)


def _back(module: nn.Module, kind: type[nn.Module], told: Any) -> None:
    module.__class__ = kind
    module.__dict__.pop("_gatec_narrowed")
    if told is not None:
        module.__dict__["_gatec_narrowed"] = told


def _class(form: str, plain: type[nn.Module]) -> type[nn.Module]:
    if (form, plain) not in _made:
        own = {
            "__reduce_ex__": lambda self, _: (_again, (form, plain), self.__getstate__()),
            "__module__": plain.__module__,
        }
        _made[form, plain] = type(plain.__name__, (FORMS[form], plain), own)
    return _made[form, plain]


def _again(form: str, plain: type[nn.Module]) -> nn.Module:
    kind = _class(form, plain)
    return kind.__new__(kind)
