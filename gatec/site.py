"""One concrete place in one model, as a pass sees it: layers, activations, and the only way to add parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor

from gatec.capture import unit_of, untouched
from gatec.errors import GatecError, Refused
from gatec.inputs import batches, example_inputs
from gatec.layers import Inner, Layer, attribute, value_of
from gatec.match import Linear, Match
from gatec.match.terms import join
from gatec.widening import Wide, widen

MAPS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)  # their channels stand before positions
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class Site:
    """Handed to check, after and birth. `root` is the whole model, `path` the module path of the rewritten unit, and
    `name` the site as the report calls it."""

    root: nn.Module
    path: str
    module: nn.Module
    match: Match
    tracer: fx.proxy.GraphAppendingTracer | None = None
    added: dict[str, str] = field(default_factory=dict)
    undo: list[Callable[[], Any]] = field(default_factory=list)
    names: dict[int, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    wide: tuple[Wide, ...] = ()  # parameters that were replaced by larger ones
    name: str = ""

    def refuse(self, why: str) -> NoReturn:
        """Decline this place; the words become a line of the report."""
        raise Refused(why)

    def note(self, words: str) -> None:
        """Say something about this place that the report is to tell."""
        self.notes.append(words)

    def layer(self, name: str) -> Layer | Inner:
        spec = self.match.layers[name]
        return (
            Layer(self.module, spec, self.tracer) if isinstance(spec, Linear) else Inner(self.module, spec, self.tracer)
        )

    @property
    def layers(self) -> dict[str, Layer | Inner]:
        return {n: self.layer(n) for n in self.match.layers}

    @property
    def dropout(self) -> float:
        return self.match.dropout

    def like(self, layer: Layer | Inner) -> dict[str, Any]:
        """dtype and device for new parameters beside `layer`."""
        weight = layer.weight
        kind = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        return {"dtype": kind, "device": weight.device}

    def add(self, name: str, build: Callable[[], nn.Module | nn.Parameter], near: Layer | Inner) -> Any:
        """A new submodule or parameter beside the layer `near`, or in the module `near`: made at birth, found again when
        the edit is replayed."""
        if name not in self.added:
            self.added[name] = self._register(name, build(), near)
        path = self.added[name]
        value = attribute(self.module, path)
        assert self.tracer is not None
        return _Call(self.tracer, path) if isinstance(value, nn.Module) else value_of(self.tracer, path, value)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        assert self.tracer is not None
        return fx.Proxy(node, self.tracer)

    def added_value(self, name: str) -> Any:
        return attribute(self.module, self.added[name])

    def shape(self, value: fx.Proxy) -> tuple[int, ...]:
        """The sizes of a value at birth, for parameters that must fit it."""
        return tuple(value.node.meta["val"].shape)

    def same_rows(self, value: fx.Proxy, other: fx.Proxy) -> None:
        """Refuse two values that do not belong together row by row."""
        one, two = self.shape(value), self.shape(other)
        if one[:-1] != two[:-1]:
            self.refuse(f"the gate would read rows of sizes {one[:-1]} where it gates rows of sizes {two[:-1]}")

    def channels(self, value: fx.Proxy, near: Layer | Inner) -> tuple[int, ...]:
        """The sizes of one number per channel of what `near` gives: of its last dimension, or, where the last that `near`
        runs is a convolution or a batch norm, of the dimension before the positions."""
        shape, held = self.shape(value), attribute(self.module, near.path) if near.path else self.module
        within = held.modules() if isinstance(held, nn.Module) else ()  # a layer may be a weight alone
        leaves = [m for m in within if next(m.parameters(False), None) is not None]
        if not leaves or not isinstance(leaves[-1], MAPS) or len(shape) < 3:
            return shape[-1:]
        return (shape[1], *[1] * (len(shape) - 2))

    def _register(self, name: str, value: Any, near: Layer | Inner) -> str:
        path, owner = self._owner(near)
        if isinstance(value, nn.Module) and isinstance(owner, CONTAINERS):
            raise Refused(f"{path or 'the module'} runs every module that it holds, so that none can be added to it")
        free = name if not hasattr(owner, name) else f"{near.path.rpartition('.')[2]}_{name}"
        if hasattr(owner, free):
            raise Refused(f"{type(owner).__name__} already has an attribute {free}")
        setattr(owner, free, value.train(owner.training) if isinstance(value, nn.Module) else value)
        self.undo.append(lambda: delattr(owner, free))
        return join(path, free)

    def _owner(self, near: Layer | Inner) -> tuple[str, nn.Module]:
        """The module that holds what is added: the one around a layer, unless that is a container; else the module itself."""
        around = near.path.rpartition(".")[0]
        if isinstance(near, Inner):
            own = near.path if near.module is not self.module.get_submodule(around) or not near.path else around
            return own, near.module
        if isinstance(self.module.get_submodule(around), CONTAINERS):  # a container would run what it holds
            return near.path, self.module.get_submodule(near.path)
        return around, self.module.get_submodule(around)

    def repeat(self, copies: int, scale: float = 1.0) -> None:
        """Lay `copies` of the hidden units beside each other, under the same names; what goes down is times `scale`.

        Once, at birth: a replay finds them there. `site.layers` are the wide ones from then on.
        """
        held = {k.weight for k in self.match.layers.values() if isinstance(k, Linear)}
        unit = unit_of(self.module)
        for rewrite in unit.rewrites if unit else ():
            if held & {getattr(k, "weight", "") for k in getattr(rewrite, "layers", {}).values()}:
                self.refuse(f"{rewrite.name} was put on the same hidden layer, which has to keep its width for it")
        layers, self.wide = widen(self.module, self.match.layers, copies, scale, self.undo)
        self.match = replace(self.match, layers=layers)

    def inputs(self, layer: Layer, data: Iterable[Any]) -> list[Tensor]:
        """What flows into `layer` while the model runs over `data`, without the edit that is made here: batches as
        `convert` takes inputs."""
        seen: list[Tensor] = []
        owner = self.module.get_submodule(layer.path)
        own = {path.rpartition(".")[2] for path in (layer.spec.weight, layer.spec.bias) if path}
        if not {name for name, _ in owner.named_parameters(recurse=False)} <= own:
            self.refuse(
                f"{layer.path or 'its module'} computes more than one layer, so that no data can be gathered there"
            )
        hook = owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        ran = False
        try:
            with torch.no_grad(), untouched(self.root), self._as_it_was():
                for batch in batches(data):
                    ran = True
                    args, kwargs = example_inputs(self.root, batch)
                    self.root(*args, **kwargs)
        finally:
            hook.remove()
        if not ran:
            raise GatecError("calibration data with batches", found="none", where=self.name,
                             hint="a list or a DataLoader: every layer goes through it, and an iterator runs out")  # fmt: skip
        real = [x for x in seen if not isinstance(x, FakeTensor)]  # a capture runs the hook too
        if not real:
            self.refuse(f"{layer.path} was not called as a module while the calibration data ran")
        return real

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The unit without its newest edit."""
        unit = unit_of(self.module)
        assert unit is not None
        newest, graphs = unit.rewrites.pop(), dict(unit.graphs)
        unit.graphs.clear()
        try:
            yield
        finally:
            unit.rewrites.append(newest)
            unit.graphs.clear()
            unit.graphs.update(graphs)

    # -- what a pass may want to know before it touches weights ---------------------------------------------------

    def movable(self, name: str) -> None:
        """Refuse where the weights of the layer must stay where they are: shared, parametrised or not plain tensors."""
        spec = self.match.layers[name]
        assert isinstance(spec, Linear)
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

    def __call__(self, *values: Any) -> fx.Proxy:
        args = fx.node.map_aggregate(values, lambda v: v.node if isinstance(v, fx.Proxy) else v)
        return fx.Proxy(self.tracer.graph.call_module(self.path, args), self.tracer)
