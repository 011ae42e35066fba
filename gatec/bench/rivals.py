"""The same computation by other libraries, with a subject's own weights; what is not installed is an ImportError."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan as scan
from torch.nn import functional as F

from gatec.bench.subjects import MLP, Experts, Subject
from gatec.vision import torchvision_loads

Run = Callable[..., Any]


def liger_swiglu(subject: Subject) -> Run:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    run: Run = LigerSiLUMulFunction.apply
    return run


def liger_packed(subject: Subject) -> Run:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    run: Run = LigerFusedGateUpSiLUMulFunction.apply
    return run


def liger_mlp(subject: MLP) -> Run:
    gated = liger_swiglu(subject)
    return lambda x: subject.down(gated(subject.gate(x), subject.up(x)))


def fla_normed_gate(subject: Subject) -> Run:
    from fla.modules.fused_norm_gate import rms_norm_gated

    return lambda x, gate, weight: rms_norm_gated(x, gate, weight, None, eps=1e-6)


def fla_hgrn(subject: Subject) -> Run:
    from fla.ops.hgrn import chunk_hgrn

    return lambda a, b: chunk_hgrn(b, a.log())[0]


def fla_gla(subject: Subject) -> Run:
    """Its heads stand behind the steps."""
    from fla.ops.gla import chunk_gla

    def run(*operands: Tensor) -> Tensor:
        out: Tensor = chunk_gla(*(x.transpose(1, 2) for x in operands), scale=1.0)[0]
        return out.transpose(1, 2)

    return run


def associative_scan(subject: Subject) -> Run:
    """PyTorch's own, forward."""

    def after(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    return torch.compile(lambda a, b: scan(after, (a, b), 1, combine_mode="pointwise")[1])


def grouped_mm(subject: Experts) -> Run:
    """torch's grouped product over sorted tokens."""
    if not hasattr(F, "grouped_mm"):
        raise ImportError("a torch without grouped_mm")

    def product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)

    def run(x: Tensor) -> Tensor:
        weights, chosen = subject.route(x)
        expert, order = torch.sort(chosen.flatten())
        ends = torch.histc(expert.float(), len(subject.down), 0, len(subject.down) - 1).cumsum(0).int()
        rows = x[order // subject.top_k]
        hidden = F.silu(product(rows, subject.gate, ends)) * product(rows, subject.up, ends)
        pairs = product(hidden, subject.down, ends) * weights.flatten()[order].unsqueeze(-1)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        out: Tensor = pairs[back].unflatten(0, (-1, subject.top_k)).sum(1)
        return out

    return run


def transformers_experts(way: str) -> Callable[[Experts], Run]:
    """Qwen3's experts by one of transformers' implementations, behind the subject's router."""

    def rival(subject: Experts) -> Run:
        torchvision_loads()
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        experts, width, hidden = subject.down.shape
        config = SimpleNamespace(num_experts=experts, hidden_size=width, moe_intermediate_size=hidden,
                                 hidden_act="silu", _experts_implementation=way)  # fmt: skip
        theirs = Qwen3MoeExperts(config)
        theirs.gate_up_proj = nn.Parameter(torch.cat([subject.gate, subject.up], 1).detach())
        theirs.down_proj = nn.Parameter(subject.down.detach().clone())

        def run(x: Tensor) -> Any:
            weights, chosen = subject.route(x)
            return theirs(x, chosen, weights)

        run.parameters = [*theirs.parameters(), subject.router.weight]  # type: ignore[attr-defined]
        return run

    return rival


def scattermoe(subject: Experts) -> Run:
    from scattermoe.mlp import GLUMLP

    experts, width, hidden = subject.down.shape
    theirs = GLUMLP(width, hidden, experts, subject.top_k).to(subject.down)
    with torch.no_grad():
        theirs.experts.weight.copy_(torch.cat([subject.up, subject.gate], 1))
        theirs.output_experts.weight.copy_(subject.down)

    def run(x: Tensor) -> Any:
        weights, chosen = subject.route(x)
        return theirs(x, weights, chosen)

    run.parameters = [*theirs.parameters(), subject.router.weight]  # type: ignore[attr-defined]
    return run
