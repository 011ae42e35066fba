"""How far an output moved, measured and not assumed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import UninitializedParameter

from gatec.capture import Call, untouched
from gatec.capture.structure import flatten
from gatec.errors import GatecError
from gatec.program import Program, cloned, doubled

Model = TypeVar("Model", bound=nn.Module)
FITS = 2**31  # bytes of one module in float64; above it drift is measured in the module's own dtype
LARGE = 2**24  # bytes in float64 that are not left to lie until Python collects them by itself


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def distance(found: Any, wanted: Any) -> float:
    """The largest absolute difference, relative to the largest value wanted; inf where shapes or NaNs differ."""
    worst = 0.0
    pairs = [(f, w) for f, w in zip(tensors(found), tensors(wanted), strict=False)]
    for f, w in pairs:
        if f.shape != w.shape:
            return float("inf")
        if not w.numel() or not w.is_floating_point():
            continue
        f, w = f.detach().double(), w.detach().double()
        if not torch.equal(f.isfinite(), w.isfinite()):
            return float("inf")
        keep = w.isfinite()
        if keep.any():
            scale = w[keep].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            worst = max(worst, float((f[keep] - w[keep]).abs().max() / scale))
    return worst


@dataclass
class Probe:
    """The output of one recorded call of one module before an edit, to be compared with the output after it.

    In float64 where the module fits and its arguments are tensors; `note` says where it is not.
    """

    call: Call
    double: bool
    before: Any

    @classmethod
    def of(cls, module: nn.Module, call: Call) -> Probe | None:
        """None where the call cannot be repeated alone, because it depends on an object that has moved on."""
        leaves = flatten(call.args, call.kwargs).leaves
        size = _doubled_bytes(module)
        plain = all(isinstance(x, Tensor) and x.device.type == "cpu" for x in leaves)
        for double in (True, False) if plain and size <= FITS else (False,):
            try:
                return cls(call, double, _run(module, call, double))
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue
        return None

    def drift(self, module: nn.Module) -> float:
        found = distance(_run(module, self.call, self.double), self.before)
        if self.double and _doubled_bytes(module) > LARGE:  # copies and the graphs captured of them hold each other
            gc.collect()
        return found

    @property
    def note(self) -> str:
        return "" if self.double else " (in the module's own dtype)"

    @property
    def rounding(self) -> float:
        """The relative drift that is rounding and not change."""
        kinds = [t.dtype for t in tensors(self.before) if t.is_floating_point()]
        return 1e-12 if self.double else max((torch.finfo(k).eps for k in kinds), default=0.0) * 16


def _run(module: nn.Module, call: Call, double: bool) -> Any:
    if not double:
        return _called(module, call)
    return _called(copy.deepcopy(module).double(), Call(*doubled((call.args, call.kwargs))))


def _doubled_bytes(module: nn.Module) -> int:
    return sum(p.numel() * 8 for p in module.parameters())


def _called(module: nn.Module, call: Call) -> Any:
    args, kwargs = copy.deepcopy((call.args, call.kwargs))
    with torch.no_grad(), untouched(module):
        return module(*args, **kwargs)


def copied(model: Model) -> Model:
    if isinstance(model, nn.Module):
        together(model)
    try:
        return copy.deepcopy(model)
    except Exception as e:
        raise GatecError("a model that can be copied", found=f"{type(e).__name__}: {str(e)[:120]}",
                         hint="gatec.convert_(model, ...) works in place") from e  # fmt: skip


def together(module: nn.Module) -> None:
    """Refuse parameters of which this process has a shard only."""
    for name, p in module.named_parameters():
        if isinstance(p, DTensor):
            raise GatecError("a model that is not sharded yet", found=f"a DTensor in {name}", where=type(module).__name__,
                             hint="convert before sharding: gatec.convert, then fully_shard or parallelize_module")  # fmt: skip


def filled(module: nn.Module) -> None:
    """Refuse parameters without data: nothing can be born beside them."""
    for name, p in module.named_parameters():
        if p.is_meta:
            raise GatecError("parameters with values", found=f"{name} on the meta device", where=type(module).__name__,
                             hint="load its weights first; gatec.load replays what was saved on a meta model")  # fmt: skip


def finite(module: nn.Module, where: str) -> None:
    """Refuse parameters that are NaN or infinite: no drift could be measured against them."""
    for name, p in module.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise GatecError("parameters with values", found=f"none yet in {name}", where=where,
                             hint="run the model once, then give it to gatec")  # fmt: skip
        if p.is_floating_point() and not p.is_meta and not bool(p.isfinite().all()):
            raise GatecError("finite weights", found=f"NaN or infinity in {name}", where=where,
                             hint="load the checkpoint before converting")  # fmt: skip


def forward(model: nn.Module, program: Program) -> Any:
    """The model's output on the program's inputs, with nothing else moved."""
    args, kwargs = cloned((program.args, program.kwargs))
    with torch.no_grad(), untouched(model):
        return model(*args, **kwargs)
