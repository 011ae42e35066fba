"""Kernels that `gatec bench compile` compiles: sources, operands, and how their launchers are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.bench.workloads import WORKLOADS, Workload, swiglu
from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels import gemm, grouped, router, scan
from gatec.kernels import recurrence as matrices
from gatec.kernels.groups import TILES
from gatec.kernels.products import Plan, Product

Shapes = tuple[tuple[int, ...], ...]
Options = Mapping[str, Any]
Ways = dict[str, tuple[Options, Options | None]]
TARGETS = ("sm_90", "gfx942")
ROWS, WIDTH, HIDDEN = 8192, 4096, 14336  # a Llama of eight billion weights
TOKENS, MODEL, EXPERT, EXPERTS, CHOICES = 8192, 2048, 768, 128, 8  # Qwen3 of thirty
BATCH, STEPS, LANES = 16, 16384, 128
HEADS, LENGTH, KEYS = 96, 8192, 128


@dataclass(frozen=True)
class Build:
    """`ways` are the sizes of tiles by name: what both launchers are called with, None where one is not called again.

    A target takes the first `of` them.

    With `state` the backward launcher wants the forward's last result, or its gradient, behind the gradient of the first.
    """

    name: str
    source: Callable[[torch.dtype], Kernel]
    shapes: Shapes
    ways: Ways = field(default_factory=lambda: {"": ({}, {})})
    forward: str = "forward"
    state: bool = False
    of: Mapping[str, int] = field(default_factory=dict)
    whole: tuple[int, ...] = ()  # which operands are whole numbers

    def jobs(self, file: str, dtype: torch.dtype) -> list[dict[str, Any]]:
        """For a process that compiles: one for each target and way."""
        kinds = ["int64" if i in self.whole else str(dtype)[6:] for i in range(len(self.shapes))]
        job = {"name": self.name, "file": file, "operands": [*zip(self.shapes, kinds, strict=True)],
               "call": self.forward, "state": self.state}  # fmt: skip
        return [
            {**job, "target": target, "way": way, "forward": options[0], "backward": options[1]}
            for target in TARGETS
            for way, options in list(self.ways.items())[: self.of.get(target)]
        ]


def plain(work: Workload) -> Build:
    return Build(work.name, work.kernel, work.shapes)


def plan(dtype: torch.dtype) -> Plan:
    products = Product("gate", "x", "gate_weight"), Product("up", "x", "up_weight")
    return Plan(("x", "gate_weight", "up_weight"), (dtype,) * 3, products)


def projected(dtype: torch.dtype) -> Kernel:
    """SwiGLU behind both of its projections."""
    derived = derive(_glu, [torch.empty(2, 2, dtype=dtype, device="meta")] * 2)
    return gemm.render("projected", "gatec.bench", plan(dtype), derived.forward, derived.backward)


def _glu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def experts(dtype: torch.dtype) -> Kernel:
    """A mixture of SwiGLU experts."""
    derived = derive(swiglu, [torch.empty(2, 2, dtype=dtype, device="meta")] * 2)
    plan = grouped.Experts.apart(2)
    return grouped.render("experts", "gatec.bench", plan, derived.forward, derived.backward, scale=dtype)


def route(dtype: torch.dtype) -> Kernel:
    score = derive(partial(F.softmax, dim=-1), [torch.empty(2, EXPERTS, dtype=dtype, device="meta")], rows=True)
    return router.render("route", "gatec.bench", score.forward, score.backward, choices=CHOICES, out=dtype)


def recurrence(dtype: torch.dtype) -> Kernel:
    """A gate's own scan: the decay is a sigmoid, what is new what the decay leaves."""
    x = torch.empty(1, dtype=dtype, device="meta")
    return scan.render("recurrence", "gatec.bench", derive(_stays, [x]), derive(_new, [x, x]))


def attention(dtype: torch.dtype, delta: bool = False) -> Kernel:
    """States that are matrices; each key decays by itself, with a delta rule all keys of a head alike."""
    kind, operands = ("shared", 6) if delta else ("keyed", 4)
    return matrices.render(kind, (dtype,) * operands, dtype, state=False, delta=delta)


def _stays(gate: Tensor) -> Tensor:
    return 1 - torch.sigmoid(gate)


def _new(gate: Tensor, x: Tensor) -> Tensor:
    return torch.sigmoid(gate) * x


def tiled(names: Iterable[str]) -> Ways:
    """The backward is the same for all."""
    return {name: ({"tiles": name}, None if i else {}) for i, name in enumerate(names)}


BUILDS = (
    *map(plain, WORKLOADS),
    Build("projected", projected, ((ROWS, WIDTH), (HIDDEN, WIDTH), (HIDDEN, WIDTH)), forward="forward_keeping",
          ways=tiled(gemm.configs(plan(torch.bfloat16))), of={"gfx942": 1}),
    Build("experts", experts, ((TOKENS, MODEL), (TOKENS, CHOICES), (TOKENS, CHOICES), (EXPERTS, EXPERT, MODEL),
          (EXPERTS, EXPERT, MODEL), (EXPERTS, MODEL, EXPERT)), ways={name: ({"config": name}, {"config": name}) for name in TILES},
          of={"gfx942": 1}, whole=(1,)),
    Build("route", route, ((TOKENS, EXPERTS),)),
    Build("recurrence", recurrence, ((BATCH, STEPS, LANES),) * 2, state=True),
    Build("linear_attention", attention, ((1, HEADS, LENGTH, KEYS),) * 4, state=True),
    Build("delta_rule", partial(attention, delta=True), (*((1, HEADS, LENGTH, KEYS),) * 3, (1, HEADS, LENGTH, 1),
          *((1, HEADS, LENGTH, KEYS),) * 2), state=True),
)  # fmt: skip
