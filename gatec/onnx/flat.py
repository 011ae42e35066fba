"""A model seen as flat tensors in, flat named tensors out: all that ONNX knows."""

import copy
import inspect
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from gatec.errors import GatecError
from gatec.inputs import keeps_cache

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class Flat(nn.Module):
    """Calls the model with its tensors by name or in order; returns only tensors, never a cache."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], by_name: bool) -> None:
        super().__init__()
        self.model, self.names, self.by_name = model, names, by_name
        self.constants = {"use_cache": False} if keeps_cache(model) else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*tensors).values())

    def named(self, *tensors: Tensor) -> dict[str, Tensor]:
        if self.by_name:
            out = self.model(**dict(zip(self.names, tensors, strict=True)), **self.constants)
        else:
            out = self.model(*tensors, **self.constants)
        return dict(leaves(out, ""))

    def on(self, model: nn.Module) -> "Flat":
        return Flat(model, self.names, self.by_name)


def flatten(model: nn.Module, inputs: Inputs) -> tuple[Flat, dict[str, Tensor]]:
    by_name = isinstance(inputs, Mapping)
    if isinstance(inputs, Mapping):
        tensors = dict(inputs)
    else:
        values = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        tensors = dict(zip(parameter_names(model, len(values)), values, strict=True))
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise GatecError(
                "inputs that are tensors",
                found=f"{name}: {type(value).__name__}",
                hint="close over other arguments in a small module around the model",
            )
    # One tensor object passed twice would become one input of the traced program.
    clones = {name: value.detach().clone() for name, value in tensors.items()}
    return Flat(model, tuple(clones), by_name), clones


def parameter_names(model: nn.Module, count: int) -> list[str]:
    names: list[str] = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}_{i}" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    if len(names) < count:
        raise GatecError(
            f"a forward of {type(model).__name__} that takes {count} tensors",
            found=f"{len(names)} positional parameters",
            hint="pass inputs as a dict of keyword arguments",
        )
    return names[:count]


def leaves(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested output, named by its path; what is no tensor is left out."""
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        keys = getattr(value, "_fields", [f"{name or 'output'}_{i}" for i in range(len(value))])
        for key, item in zip(keys, value, strict=True):
            yield from leaves(item, key)


def twin(model: nn.Module) -> nn.Module:
    """A copy whose settings may be changed; weights are shared, not copied."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in shared})
