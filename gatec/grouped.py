"""One matrix product per expert over tokens sorted by expert: `gatec::grouped_linear`.

    grouped_linear(x[N, K], weight[E, O, K], ends[E])[rows of e] = x[rows of e] @ weight[e].T

The rows of e are ends[e-1]:ends[e], an expert may be empty, rows behind the last end hold nothing. `weight` may be any
strided view, so experts which are slices of a dense layer need no copy of it. The weight's gradient
is a second operator, and each is the other's gradient, so the pair differentiates as often as one
likes.
"""

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from gatec.errors import GatecError

FUSED = (torch.float32, torch.bfloat16, torch.float16)
SPARSE = 4  # experts for each row, above which a loop over those that have any is faster on a CPU
ALIGNMENT = 16  # bytes: what torch's grouped kernels ask of every stride but 1


class Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each expert's rows through its own linear layer; follows autocast as F.linear does."""
    # A graph that is being written keeps the call as one node.
    if has_torch_function((x, weight, ends)):
        kept: Tensor = handle_torch_function(grouped_linear, (x, weight, ends), x, weight, ends)
        return kept
    device = x.device.type
    known = torch.amp.is_autocast_available(device)
    if known and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    out: Tensor = (product if direct(x, weight, ends) else linear_op)(x, weight, ends)
    return out


def direct(*tensors: Tensor) -> bool:
    """Whether nothing but the values is asked for, so that the way through an operator would be time lost: no gradient,
    no trace, no mode or transform that has to see the call as one.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    values = all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return values and not learns


def product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    x = x.contiguous()
    # torch's grouped product never waits for a GPU; on a CPU it visits every expert.
    if (x.is_cuda or len(weight) <= SPARSE * len(x)) and fuses(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    some = [(number, rows) for number, rows in enumerate(spans(ends, len(x))) if rows.stop > rows.start]
    behind = len(x) - (some[-1][1].stop if some else 0)
    parts = [x[rows] @ weight[number].t() for number, rows in some]
    return torch.cat([*parts, x.new_zeros(behind, weight.shape[1])])


def outer(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """y[rows].T @ x[rows] of each expert; exactly zero where an expert saw no token."""
    y, x = y.contiguous(), x.contiguous()
    if fuses(x, y):
        return F.grouped_mm(y.T, x, offs=ends.to(torch.int32))
    out = x.new_zeros(ends.shape[0], y.shape[1], x.shape[1])
    for rows, expert in zip(spans(ends, len(x)), out, strict=True):
        expert.copy_(y[rows].T @ x[rows])
    return out


def spans(ends: Tensor, tokens: int) -> list[slice]:
    marks = [0, *ends.tolist()]
    if marks != sorted(marks) or marks[-1] > tokens:
        raise GatecError(
            f"ends of experts that rise from 0 to at most {tokens}, the number of rows",
            found=str(marks[1:]),
            where="gatec::grouped_linear",
            hint="sort the tokens by expert and pass the cumulative counts",
        )
    return [slice(start, end) for start, end in pairwise(marks)]


def fuses(x: Tensor, other: Tensor) -> bool:
    """Whether torch's grouped kernels take these operands as they lie in memory."""
    same = x.dtype == other.dtype and x.dtype in FUSED
    return same and 0 not in (*x.shape, *other.shape) and regular(x) and regular(other)


def regular(t: Tensor) -> bool:
    rows, columns = t.stride()[-2:]
    matrix = (columns == 1 and rows >= t.shape[-1]) or (rows == 1 and columns >= t.shape[-2])
    sizes = [t.storage_offset(), rows if columns == 1 else columns, *t.stride()[:-2]]
    return matrix and all(s * t.element_size() % ALIGNMENT == 0 for s in sizes)


linear_op = torch.library.custom_op("gatec::grouped_linear", product, mutates_args=())
outer_op = torch.library.custom_op("gatec::grouped_outer", outer, mutates_args=())


@linear_op.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@outer_op.register_fake
def _(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], y.shape[1], x.shape[1])


def save(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def linear_backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    dx = linear_op(dy, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    dweight = outer_op(dy, x, ends) if ctx.needs_input_grad[1] else None
    return dx, dweight, None


def outer_backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    y, x, ends = ctx.saved_tensors
    dy = linear_op(x, dout, ends) if ctx.needs_input_grad[0] else None
    dx = linear_op(y, dout.transpose(1, 2), ends) if ctx.needs_input_grad[1] else None
    return dy, dx, None


linear_op.register_autograd(linear_backward, setup_context=save)
outer_op.register_autograd(outer_backward, setup_context=save)
