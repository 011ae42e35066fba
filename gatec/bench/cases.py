"""The table of `gatec bench kernels`: what is measured, at which sizes, beside whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gatec.bench import rivals
from gatec.bench.subjects import (
    MLP,
    Attention,
    Chunked,
    Experts,
    Function,
    Grouped,
    Lerp,
    Loop,
    Packed,
    Router,
    Subject,
)
from gatec.bench.workloads import WORKLOADS, Workload
from gatec.fusing import fuse
from gatec.rerolling import reroll

Operands = tuple[Tensor, ...]
SHORT = 8  # steps of the example that a loop is captured on


@dataclass(frozen=True)
class Case:
    """`ours` makes of the subject what gatec runs; `cpu` are sizes at which a CPU has something to show.

    A `loop` is not given to torch.compile, which unrolls it.
    """

    name: str
    make: Callable[..., Subject]
    sizes: tuple[Any, ...]
    small: tuple[Any, ...]
    ours: Callable[[Any, Operands], nn.Module]
    rivals: Mapping[str, Callable[[Any], Callable[..., Any]]] = field(default_factory=dict)
    cpu: tuple[Any, ...] | None = None
    loop: bool = False


def fused(subject: Subject, operands: Operands) -> nn.Module:
    return fuse(subject, operands)


def rolled(subject: Subject, operands: Operands) -> nn.Module:
    return reroll(subject, [x[:, :SHORT] for x in operands])


def sharing(kind: type[Subject]) -> Callable[[Subject, Operands], nn.Module]:
    """The subject's parameters in another module, fused where a mixture is."""

    def ours(subject: Subject, operands: Operands) -> nn.Module:
        other = kind.__new__(kind)
        vars(other).update(vars(subject))
        return fuse(other, operands) if kind is Grouped else other

    return ours


def function(work: Workload) -> Case:
    small = Workload(work.fn, tuple(tuple(min(n, 7) for n in shape) for shape in work.shapes), work.rows, work.label)
    return Case(work.name, Function, (work,), (small,), fused, BESIDE.get(work.name, {}))


BESIDE = {
    "swiglu": {"liger": rivals.liger_swiglu}, "swiglu_wide": {"liger": rivals.liger_swiglu},
    "swiglu_few_tokens": {"liger": rivals.liger_swiglu}, "normed_gate": {"fla": rivals.fla_normed_gate},
    "normed_gate_per_head": {"fla": rivals.fla_normed_gate},
}  # fmt: skip
MIXTURE = {
    "transformers": rivals.transformers_experts("grouped_mm"), "grouped_mm": rivals.grouped_mm,
    "scattermoe": rivals.scattermoe,
}  # fmt: skip
CASES = (
    *map(function, WORKLOADS),
    Case("swiglu_packed", Packed, (8192, 14336), (5, 6), fused, {"liger": rivals.liger_packed}),
    Case("mlp", MLP, (8192, 4096, 14336), (5, 8, 12), fused, {"liger": rivals.liger_mlp}),
    Case("mlp_few_tokens", MLP, (64, 4096, 14336), (3, 8, 12), fused, {"liger": rivals.liger_mlp}),
    Case("two_projections", Lerp, (8192, 4096), (5, 8), fused),
    Case("experts", Experts, (8192, 2048, 768, 128, 8), (9, 8, 8, 4, 2), sharing(Grouped), MIXTURE,
         cpu=(256, 256, 256, 16, 2)),
    Case("experts_many_tokens", Experts, (32768, 2048, 768, 128, 8), (9, 8, 8, 4, 2), sharing(Grouped), MIXTURE),
    Case("route", Router, (8192, 128, 8), (5, 8, 2), fused),
    Case("route_few_tokens", Router, (64, 128, 8), (3, 8, 2), fused),
    Case("recurrence", Loop, (16, 16384, 128), (2, 40, 3), rolled,
         {"fla": rivals.fla_hgrn, "associative_scan": rivals.associative_scan}, cpu=(1, 1024, 64), loop=True),
    Case("linear_attention", Attention, (1, 96, 8192, 128), (1, 2, 70, 8), sharing(Chunked), {"fla": rivals.fla_gla},
         cpu=(1, 4, 512, 32), loop=True),
)  # fmt: skip
