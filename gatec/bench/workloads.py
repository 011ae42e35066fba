"""Gated regions at the sizes in which models have them: what `gatec bench compile` and `gatec bench kernels` look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels import pointwise, rowwise


@dataclass(frozen=True)
class Workload:
    """A function of tensors, their sizes, and whether it looks at whole rows."""

    fn: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    rows: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.fn.__name__

    def operands(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        made = torch.empty if device == "meta" else torch.randn
        return [made(shape, dtype=dtype, device=device) for shape in self.shapes]

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """Its generated source, forward and backward."""
        derived = derive(self.fn, self.operands(dtype, "meta"), rows=self.rows)
        render = rowwise.render if self.rows else pointwise.render
        return render(self.name, "gatec.bench.workloads", derived.forward, derived.backward)

    def bytes(self, dtype: torch.dtype, *, trained: bool = False) -> int:
        """What a kernel reads and writes: every operand once, and the result; then its gradient, and operands and theirs."""
        operands = sum(torch.Size(shape).numel() for shape in self.shapes) * dtype.itemsize
        whole = torch.Size(torch.broadcast_shapes(*self.shapes)).numel() * dtype.itemsize
        return 2 * (operands + whole) + operands if trained else operands + whole


def swiglu(gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(gate) * value


def geglu(gate: Tensor, value: Tensor) -> Tensor:
    return F.gelu(gate) * value


def clamped_swiglu(gate: Tensor, value: Tensor) -> Tensor:
    """GPT-OSS."""
    gate = gate.clamp(max=7.0)
    return gate * torch.sigmoid(1.702 * gate) * (value.clamp(-7, 7) + 1)


def output_gate(attended: Tensor, logit: Tensor) -> Tensor:
    return attended * torch.sigmoid(logit)


def highway(x: Tensor, h: Tensor, logit: Tensor) -> Tensor:
    gate = torch.sigmoid(logit)
    return gate * h + (1 - gate) * x


def residual_gate(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    return x + 2 * torch.sigmoid(scale) * branch


def squeeze_excite(x: Tensor, logit: Tensor) -> Tensor:
    return x * torch.sigmoid(logit)


def normed_gate(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm, then a SiLU gate: how linear attention ends."""
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6) * F.silu(gate)


def adaptive_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """DiT's."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def router(logits: Tensor, open_: Tensor) -> Tensor:
    """The dense part of a router: softmax over experts, times what is open."""
    return F.softmax(logits, -1) * open_


HIDDEN, WIDE = (8192, 14336), (8192, 4096)
WORKLOADS = (
    Workload(swiglu, (HIDDEN, HIDDEN)),
    Workload(swiglu, ((8192, 32768), (8192, 32768)), label="swiglu_wide"),
    Workload(swiglu, ((64, 14336), (64, 14336)), label="swiglu_few_tokens"),
    Workload(geglu, (HIDDEN, HIDDEN)),
    Workload(clamped_swiglu, (HIDDEN, HIDDEN)),
    Workload(output_gate, (WIDE, WIDE)),
    Workload(highway, (WIDE, WIDE, WIDE)),
    Workload(residual_gate, (WIDE, WIDE, (4096,))),
    Workload(squeeze_excite, ((64, 256, 56, 56), (64, 256, 1, 1))),
    Workload(normed_gate, ((32768, 4096), (32768, 4096), (4096,)), rows=True),
    Workload(normed_gate, ((8192 * 16, 128), (8192 * 16, 128), (128,)), rows=True, label="normed_gate_per_head"),
    Workload(adaptive_norm, ((16, 1024, 1152), (16, 1, 1152), (16, 1, 1152)), rows=True),
    Workload(router, ((8192, 128), (8192, 128)), rows=True),
)
