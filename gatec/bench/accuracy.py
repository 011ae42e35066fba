"""How far a kernel's value and gradients are from float64, over how far eager's are in the same type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gatec.bench.subjects import Subject


def error_over_eager(subject: Subject, operands: list[Tensor]) -> float:
    """The largest ratio of all results; an error of eager's below the type's precision counts as that."""
    kernel = subject.kernel(operands[0].dtype)
    assert kernel is not None
    grad = torch.randn_like(subject(*operands))
    truth = _results(subject, [x.double() for x in operands], grad.double())
    theirs = _results(subject, operands, grad)
    ours: list[Tensor] = [kernel.forward(*operands), *(g for g in kernel.backward(grad, *operands) if g is not None)]
    ratios = []
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        floor = torch.finfo(mine.dtype).eps * float(true.abs().max())
        apart = [float((x.double() - true).abs().max()) for x in (mine, other)]
        ratios.append(apart[0] / max(apart[1], floor))
    return max(ratios)


def _results(fn: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in operands]
    out = fn(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
