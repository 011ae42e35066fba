"""merge(): gates that have become constants, folded into the weights beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from gatec.capture import unit_of
from gatec.capture.unit import Unit
from gatec.errors import GatecError, Refused, first_line
from gatec.history import without
from gatec.layers import Layer, attribute
from gatec.match.terms import join
from gatec.pipeline import all_or_nothing, prepare
from gatec.program import Edit, Program
from gatec.report import Report, attach
from gatec.rewrite import Rewrite, back, take_out
from gatec.rewrite.splice import bound
from gatec.site import Site
from gatec.verify import Probe, copied, distance, forward

Model = TypeVar("Model", bound=nn.Module)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
DROPOUTS = (nn.Dropout, nn.modules.dropout._DropoutNd)


def merge(model: Model, inputs: Any = None) -> Model:
    """A copy of `model` in which gates that are constants are part of the weights, and no longer there.

    Equal to the gated model up to rounding of the weights (measured per gate), or the gate is left where it is,
    with the reason in `gatec.report(result)`: a gate that depends on the input cannot be folded. A model without any gate left
    is an ordinary one, and is saved like one.
    """
    model = copied(model)
    units = [(p, u) for p, m in model.named_modules() if (u := unit_of(m))]
    gated = [(p, u, r) for p, u in units for r in u.edits if isinstance(r, Rewrite)]
    if not gated:
        raise GatecError(
            "a model with gates", found=f"none in {type(model).__name__}", hint='gatec.convert(model, "wrap")'
        )
    program = prepare(model, inputs)
    with all_or_nothing() as undo:
        for path, unit, rewrite in gated:
            program.edits.append(_merged(program, path, unit, rewrite, undo))
        if not any(e.verdict == "put" for e in program.edits):
            raise GatecError("a gate that can be folded into weights",
                             found="; ".join(f"{e.site or '(model)'}: {e.why}" for e in program.edits[:4]))  # fmt: skip
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(program.edits), moved), undo)
        without(model, [(r.name, r.site_under(p)) for (p, _, r), e in zip(gated, program.edits, strict=True)
                        if e.verdict == "put"])  # fmt: skip
    return model


def _merged(program: Program, path: str, unit: Unit, rewrite: Rewrite, undo: list[Callable[[], Any]]) -> Edit:
    module, name = program.module(path), rewrite.site_under(path)
    steps: list[Callable[[], Any]] = []
    try:
        if rewrite.gate.merge is None:
            raise Refused(f"{rewrite.name} depends on the input")
        probe = Probe.of(module, program.calls[path][0])
        if probe is None:
            raise Refused("its call cannot be repeated alone, so that the result could not be proved")
        site = Fold(
            program.model, path, module, rewrite.match, None, rewrite.added, steps, program.names, program=program
        )
        rewrite.gate.merge(site, **bound(rewrite.gate, rewrite.gate.merge, site, rewrite.options))
        take_out(module, unit, [rewrite], steps)
        drift = probe.drift(module)
        if not drift <= max(probe.rounding, _rounding(module)):
            raise Refused(f"the result would differ from the gated model by {drift:.1e}")
    except (Refused, RuntimeError, ValueError) as e:
        back(steps)
        return Edit("merge", name, "left", first_line(e))
    undo.extend(steps)
    return Edit("merge", name, "put", "", drift, f"{probe.note}; {rewrite.name} is part of the weights")


@dataclass
class Fold(Site):
    """A site whose gate is being folded: `scale_inputs` and `scale_outputs` are the ways to do it."""

    program: Program | None = None

    def scale_inputs(self, name: str, factor: Tensor) -> None:
        """Multiply what flows into a linear layer, by its weight."""
        for weight in self._inputs(name):
            self._scale(weight, factor.detach().flatten())

    def scale_outputs(self, name: str, factor: Tensor) -> None:
        """Multiply what a layer or a branch returns, by the weights of what it ends in."""
        flat = factor.detach().flatten()
        for weight, dim in self._outputs(name, flat.numel()):
            self._scale(weight, flat.view(-1, *[1] * (weight.dim() - 1 - dim)) if flat.numel() > 1 else flat)

    def scale_rows(self, name: str, factor: Tensor) -> None:
        """Multiply each row of an embedding."""
        weight = self.layer(name).weight
        self._unshared_parameter(weight)
        self._scale(weight, factor.unsqueeze(-1))

    def _scale(self, weight: Tensor, factor: Tensor) -> None:
        before = weight.detach().clone()
        self.undo.append(partial(_copy, weight.detach(), before))
        weight.detach().mul_(factor.to(weight))

    def _inputs(self, name: str) -> list[Tensor]:
        layer = self.layer(name)
        if isinstance(layer, Layer):
            self.movable(name)
            return [layer.weight]
        found = layer.module
        if not isinstance(found, nn.Linear):
            self.refuse(f"what it flows into is no linear layer, but {type(found).__name__}")
        self._unshared(found)
        return [found.weight]

    def _outputs(self, name: str, features: int) -> list[tuple[Tensor, int]]:
        layer = self.layer(name)
        if isinstance(layer, Layer):
            self.movable(name)
            return [(v, 0) for v in (layer.weight, layer.bias) if v is not None]
        value = attribute(self.module, layer.path) if layer.path else self.module
        if isinstance(value, Tensor):
            self._unshared_parameter(value)
            return [(value, next((d for d, size in enumerate(value.shape) if size == features), 0))]
        return self._weights(self._last(join(self.path, layer.path)))

    def _weights(self, module: nn.Module) -> list[tuple[Tensor, int]]:
        """The tensors that what a module returns is a multiple of, and the dimensions of its features in them."""
        self._unshared(module)
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            self.refuse("it ends in a transposed convolution in groups")
        across = isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
        held: list[Any] = [(module.weight, int(across)), (module.bias, 0)]
        return [(v, dim) for v, dim in held if isinstance(v, Tensor)]

    def _last(self, path: str) -> nn.Module:
        """The layer in which the graph of a module ends; dropout is seen through."""
        assert self.program is not None
        module = self.program.module(path)
        linear = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or type(module).__name__ == "Conv1D"
        if linear or (isinstance(module, NORMS) and module.weight is not None):
            return module
        graph = self.program.graph_of(path)
        if graph is None:
            self.refuse(f"{path or 'the model'} was not captured, so that it is not known in what it ends")
        node = _end(module, next(n for n in graph.nodes if n.op == "output").args[0])
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) > 1:
            self.refuse(f"{path or 'the model'} ends in no layer that could be scaled, but in {node}")
        return self._last(join(path, str(node.target)))

    def _unshared(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            self._unshared_parameter(parameter)

    def _unshared_parameter(self, parameter: Any) -> None:
        names = self.names.get(id(parameter), ())
        if len(names) != 1:
            self.refuse(f"{names[0]} is shared with {names[1]}" if names else "its weights are computed")


def _rounding(module: nn.Module) -> float:
    """What rounding of weights may do to what a module returns."""
    return max((torch.finfo(p.dtype).eps for p in module.parameters() if p.is_floating_point()), default=0.0) * 16


def _end(module: nn.Module, value: Any) -> Any:
    """The node that holds what is returned first, before dropout."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    while isinstance(value, fx.Node) and value.op in ("call_module", "call_function") and value.all_input_nodes:
        dropout = value.target is nn.functional.dropout
        if value.op == "call_module":
            dropout = isinstance(module.get_submodule(str(value.target)), (*DROPOUTS, nn.Identity))
        if not dropout:
            break
        value = value.all_input_nodes[0]
    return value


@torch.no_grad()
def _copy(weight: Tensor, before: Tensor) -> None:
    weight.copy_(before)
