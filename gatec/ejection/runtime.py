"""What an ejected package does when it runs: which forward fits a call, and which function may use its kernel."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gatec.capture.around import spread
from gatec.capture.structure import MISSING, attribute, flatten

OWN = "_gatec_own"  # in a generated forward around a module, the module without it


class Miss(Exception):
    """A decision that a forward was generated under does not hold for this call."""


ANSWERS: dict[str, Callable[[], Any]] = {
    "compiling": torch.compiler.is_compiling,
    "dynamo": torch.compiler.is_compiling,
    "exporting": torch.compiler.is_exporting,
    "onnx": torch.onnx.is_in_onnx_export,
    "grad": torch.is_grad_enabled,
}


@dataclass(frozen=True)
class Forward:
    """A generated forward, and what it was generated for: a form of arguments, and what the module was like.

    `state` begins with whether the module is training, None where that changes nothing.
    """

    run: Callable[..., Any]
    form: Any
    state: Any
    reads: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]
    device: str | None = None

    def fits(self, module: nn.Module, kind: type[nn.Module], form: Any, device: str | None) -> bool:
        if form != self.form or self.device not in (None, device) or self.state[0] not in (None, module.training):
            return False
        return bool(surroundings(module, kind, self.reads, self.asked)[1:] == self.state[1:])


def told(value: Any) -> Any:
    """A value in words and numbers, the same in every process: functions and classes by name, tensors by form."""
    if isinstance(value, (bool, int, str, type(None))):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        return value.ndim, str(value.dtype)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value).__name__, tuple(told(v) for v in value)
    if isinstance(value, dict):
        return type(value).__name__, tuple((str(k), told(v)) for k, v in value.items())
    if isinstance(value, (float, complex, torch.dtype, torch.device, torch.Size, Enum, slice, range)):
        return str(value)
    if value is MISSING:
        return "nothing"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def taken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any, str | None]:
    """The tensors of a call, the form of the rest, and the kind of device they are on."""
    flat = flatten(args, kwargs)
    device = next((x.device.type for x in flat.leaves if isinstance(x, Tensor)), None)
    return flat.leaves, tuple(told(_anywhere(part)) for part in flat.key), device


def _anywhere(part: Any) -> Any:
    """The form of a tensor without its device."""
    plain = isinstance(part, tuple) and len(part) == 3 and isinstance(part[1], torch.dtype)
    return part[:2] if plain else part


def surroundings(
    module: nn.Module, kind: type[nn.Module], reads: tuple[tuple[str, str], ...], asked: tuple[str, ...]
) -> Any:
    """What a forward may depend on besides its arguments."""
    return (
        module.training,
        *[str(torch.get_autocast_dtype(d)) if torch.is_autocast_enabled(d) else "" for d in ("cpu", "cuda")],
        tuple(ANSWERS[name]() for name in asked),
        tuple(told(variable(module, kind, child, name)) for child, name in reads),
    )


def variable(module: nn.Module, kind: type[nn.Module], child: str, name: str) -> Any:
    """An attribute of the module or of a child, or a global of the forward (":")."""
    if child == ":":
        return getattr(inspect.unwrap(kind.forward), "__globals__", {}).get(name, MISSING)
    return attribute(module, child, name)


def usable(operands: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], columns: int | None) -> bool:
    """Whether a kernel can run on these operands; nothing of torch.func and forward mode goes through one."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return False
    if columns is not None and max(x.shape[-1] if x.ndim else 1 for x in operands) != columns:
        return False
    return all(x.is_cuda for x in operands) and tuple(x.dtype for x in operands) == dtypes


# -- modules whose forward is generated -------------------------------------------------------------------------------

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class Site:
    """A module: its class, forwards that may run in it, and forwards around that, which hold for every call of their form.

    `changed` where its own forward computes something else than the model that was ejected.
    """

    kind: str
    inside: tuple[str, ...]
    around: tuple[str, ...] = ()
    changed: bool = False


def ejected(original: type[nn.Module], forwards: dict[str, Forward]) -> type[nn.Module]:
    """A subclass of a module's class, under the same name, that runs the forward which fits a call, else its own."""
    if original not in _CLASSES:

        @functools.wraps(original.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            site: Site = self.__dict__["_ejected"]
            if not site.around:
                return inside(self, *args, **kwargs)
            leaves, key = spread(args, kwargs)
            form = tuple(map(told, key))
            name = next((n for n in site.around if forwards[n].form == form), None)
            return forwards[name].run(self, *leaves) if name else unfit(site)

        def inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            site: Site = self.__dict__["_ejected"]
            leaves, form, device = taken(args, kwargs)
            for name in site.inside:
                if forwards[name].fits(self, original, form, device):
                    try:
                        return forwards[name].run(self, *leaves)
                    except Miss:
                        continue
            return unfit(site) if site.changed else original.forward(self, *args, **kwargs)

        def reduce(self: nn.Module, protocol: Any) -> Any:
            return revived, (original,), self.__dict__

        body = {"forward": forward, OWN: inside, "__reduce_ex__": reduce, "__module__": original.__module__,
                "__qualname__": original.__qualname__, "__doc__": original.__doc__}  # fmt: skip
        _CLASSES[original] = type(original.__name__, (original,), body)
    return _CLASSES[original]


def unfit(site: Site) -> Any:
    raise RuntimeError(
        f"this package has no forward of {site.kind} for such a call, and the class's own computes something else: "
        "eject the converted model with inputs of this form, in the mode that it is called in"
    )


def revived(original: type[nn.Module]) -> nn.Module:
    kind = ejected(original, importlib.import_module(".forwards", __package__).FORWARDS)
    return kind.__new__(kind)


def put(model: nn.Module, sites: dict[str, Site], forwards: dict[str, Forward], added: dict[str, Any]) -> None:
    """Give every site its forwards. Nothing is changed where one of them is another module than it was."""
    new = [path for path in added if attribute(model, *_split(path)) is MISSING]
    try:
        for path in new:
            setattr(model.get_submodule(_split(path)[0]), _split(path)[1], copy.deepcopy(added[path]))
        found = list(_fitting(model, sites, forwards))
    except BaseException:
        for path in new:
            _without(model, path)
        raise
    for module, site in found:
        module.__dict__["_ejected"] = site
        module.__class__ = ejected(type(module), forwards)


def _fitting(
    model: nn.Module, sites: dict[str, Site], forwards: dict[str, Forward]
) -> Iterator[tuple[nn.Module, Site]]:
    for path, site in sites.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{type(model).__name__} has no module {path}") from None
        if isinstance(module, tuple(_CLASSES.values())):
            continue
        if type(module).__qualname__ != site.kind:
            raise ValueError(f"{path or 'the model'} is a {type(module).__qualname__}, and not a {site.kind}")
        differs = [_differs(module, forwards[name]) for name in site.inside]
        if differs and all(differs):
            raise ValueError(f"{path or 'the model'} is not as it was when this package was made: {differs[0]}")
        yield module, site


def _differs(module: nn.Module, forward: Forward) -> str:
    """The first thing that a forward depends on and the module has otherwise."""
    now = surroundings(module, type(module), forward.reads, forward.asked)[-1]
    return next((f"{'.'.join(filter(None, place))} is {found}, and was {was}"
                 for place, found, was in zip(forward.reads, now, forward.state[-1], strict=True) if found != was), "")  # fmt: skip


def taken_out(model: nn.Module, added: dict[str, Any]) -> None:
    """Every module as it was before `put`."""
    for module in model.modules():
        if "_ejected" in module.__dict__:
            del module.__dict__["_ejected"]
            module.__class__ = type(module).__mro__[1]
    for path in added:
        _without(model, path)


def held(added: dict[str, Any], file: Path) -> dict[str, Any]:
    """What conversion put beside the model's own: tensors, and modules built again without their __init__."""
    tensors = torch.load(file, weights_only=True) if added else {}
    return {path: _module(path, parts, tensors) if parts else tensors[path] for path, parts in added.items()}


def _module(path: str, parts: tuple[Any, ...], tensors: dict[str, Tensor]) -> nn.Module:
    made: dict[str, nn.Module] = {}
    for name, where, kind, settings, empty in parts:
        cls: Any = functools.reduce(getattr, kind.split("."), importlib.import_module(where))
        module = made[name] = cls.__new__(cls)
        nn.Module.__init__(module)
        module.__dict__.update(settings)
        for own in empty:
            module.register_parameter(own, None)
        for own, tensor in ((k.rpartition("."), t) for k, t in tensors.items()):
            if own[0] == ".".join(filter(None, (path, name))):
                keep = module.register_parameter if isinstance(tensor, nn.Parameter) else module.register_buffer
                keep(own[2], tensor)
        if name:
            made[_split(name)[0]].add_module(_split(name)[1], module)
    return made[""]


def _split(path: str) -> tuple[str, str]:
    owner, _, name = path.rpartition(".")
    return owner, name


def _without(model: nn.Module, path: str) -> None:
    owner, name = _split(path)
    if attribute(model, owner, name) is not MISSING:
        delattr(model.get_submodule(owner), name)


def hold(found: Any, wanted: Any, where: str) -> None:
    """Leave a forward whose Python decision at `where` (file:line) does not hold for the values at hand."""
    if found is not wanted and found != wanted:
        raise Miss(where)
