"""One concrete place in one model, as a pass sees it: layers, activations, and the only way to add parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from gatec.capture import untouched
from gatec.errors import Refused
from gatec.inputs import example_inputs
from gatec.match import Linear, Match

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """A linear layer at a site: callable inside `after`, with its weights as [out, in] views of the live parameters."""

    unit: nn.Module
    spec: Linear
    tracer: fx.proxy.GraphAppendingTracer | None = None

    @property
    def path(self) -> str:
        return self.spec.path

    @property
    def out_features(self) -> int:
        return self.spec.out

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def weight(self) -> Tensor:
        rows: Tensor = _rows(_fetch(self.unit, self.spec.weight), self.spec)
        return rows

    @property
    def bias(self) -> Tensor | None:
        return None if self.spec.bias is None else _fetch(self.unit, self.spec.bias)[slice(*_stop(self.spec))]

    def weight_node(self) -> Any:
        """The [out, in] weight inside the graph that is being written."""
        return _rows(self._proxy(self.spec.weight), self.spec)

    def bias_node(self) -> Any:
        return None if self.spec.bias is None else self._proxy(self.spec.bias)[slice(*_stop(self.spec))]

    def _proxy(self, path: str) -> Any:
        assert self.tracer is not None, "outside of `after` a layer has no graph"
        return _value(self.tracer, path, _fetch(self.unit, path))


def _rows(weight: Any, spec: Linear) -> Any:
    rows = weight.t() if spec.transposed else weight
    return rows[slice(*_stop(spec))] if spec.packed else rows


def _stop(spec: Linear) -> tuple[int, int | None, int]:
    start, stop, step = spec.rows
    return start, (None if stop < 0 else stop), step


def _fetch(unit: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found = getattr(unit.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


@dataclass
class Site:
    """Handed to check, after and birth. `root` is the whole model, `path` the module path of the rewritten unit."""

    root: nn.Module
    path: str
    module: nn.Module
    match: Match
    tracer: fx.proxy.GraphAppendingTracer | None = None
    added: dict[str, str] = field(default_factory=dict)
    undo: list[Callable[[], Any]] = field(default_factory=list)
    names: dict[int, list[str]] = field(default_factory=dict)

    def refuse(self, why: str) -> NoReturn:
        """Decline this place; the words become a line of the report."""
        raise Refused(why)

    def layer(self, name: str) -> Layer:
        return Layer(self.module, self.match.layers[name], self.tracer)

    @property
    def layers(self) -> dict[str, Layer]:
        return {n: self.layer(n) for n in self.match.layers}

    @property
    def dropout(self) -> float:
        return self.match.dropout

    def like(self, layer: Layer) -> dict[str, Any]:
        """dtype and device for new parameters beside `layer`."""
        weight = layer.weight
        kind = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        return {"dtype": kind, "device": weight.device}

    def add(self, name: str, build: Callable[[], nn.Module | nn.Parameter], near: Layer) -> Any:
        """A new submodule or parameter beside `near`: made at birth, found again when the edit is replayed."""
        if name not in self.added:
            self.added[name] = self._register(name, build(), near)
        path = self.added[name]
        value = _attribute(self.module, path)
        assert self.tracer is not None
        return _Call(self.tracer, path) if isinstance(value, nn.Module) else _value(self.tracer, path, value)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        assert self.tracer is not None
        return fx.Proxy(node, self.tracer)

    def added_value(self, name: str) -> Any:
        return _attribute(self.module, self.added[name])

    def _register(self, name: str, value: Any, near: Layer) -> str:
        owner_path = near.path.rpartition(".")[0]
        owner = self.module.get_submodule(owner_path)
        if isinstance(owner, CONTAINERS):  # a container would run what it holds
            owner_path, owner = near.path, self.module.get_submodule(near.path)
        free = name if not hasattr(owner, name) else f"{near.path.rpartition('.')[2]}_{name}"
        if hasattr(owner, free):
            raise Refused(f"{type(owner).__name__} already has an attribute {free}")
        setattr(owner, free, value)
        self.undo.append(lambda: delattr(owner, free))
        return f"{owner_path}.{free}" if owner_path else free

    def inputs(self, layer: Layer, data: Iterable[Any]) -> list[Tensor]:
        """What flows into `layer` while the whole model runs over `data`: batches as `convert` takes inputs."""
        seen: list[Tensor] = []
        owner = self.module.get_submodule(layer.path)
        hook = owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        try:
            with torch.no_grad(), untouched(self.root):
                for batch in [data] if isinstance(data, (Tensor, dict)) else data:
                    args, kwargs = example_inputs(self.root, batch)
                    self.root(*args, **kwargs)
        finally:
            hook.remove()
        if not seen:
            self.refuse(f"{layer.path} was not called as a module while the calibration data ran")
        return seen

    # -- what a pass may want to know before it touches weights ---------------------------------------------------

    def movable(self, name: str) -> None:
        """Refuse where the weights of the layer must stay where they are: shared, parametrised or not plain tensors."""
        spec = self.match.layers[name]
        for path in filter(None, (spec.weight, spec.bias)):
            owner, _, leaf = path.rpartition(".")
            module = self.module.get_submodule(owner)
            full = f"{self.path}.{path}" if self.path else path
            if leaf not in module._parameters:
                self.refuse(f"{full} is computed (a parametrization), its values cannot be moved")
            if type(module._parameters[leaf]) is not nn.Parameter:
                self.refuse(f"{full} is a {type(module._parameters[leaf]).__name__}, not a plain parameter")
            others = [n for n in self.names.get(id(module._parameters[leaf]), ()) if n != full]
            if others:
                self.refuse(f"{full} is shared with {others[0]}")


@dataclass(frozen=True)
class _Call:
    """A child module of the unit, callable inside `after`."""

    tracer: fx.proxy.GraphAppendingTracer
    path: str

    def __call__(self, x: fx.Proxy) -> fx.Proxy:
        return fx.Proxy(self.tracer.graph.call_module(self.path, (x.node,)), self.tracer)


def _value(tracer: fx.proxy.GraphAppendingTracer, path: str, value: Tensor) -> fx.Proxy:
    node = tracer.graph.get_attr(path)
    node.meta["val"] = value
    return fx.Proxy(node, tracer)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
