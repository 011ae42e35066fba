"""How operators from outside PyTorch's own set become standard ONNX: a table that others add to."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

from gatec.grouped import linear_op

Operator = torch._ops.OpOverload | str  # a name is looked up at export: its library may be absent
GROUPED_OPERATOR = torch.ops.gatec.grouped_linear.default
DECOMPOSITIONS: dict[Operator, Callable[..., Any]] = {}
TRANSLATIONS: dict[Operator, Callable[..., Any]] = {}


def register_decomposition(operator: Operator, fn: Callable[..., Any]) -> None:
    """`fn` takes the operator's arguments and computes it in PyTorch's own operators."""
    DECOMPOSITIONS[operator] = fn


def register_translation(operator: Operator, fn: Callable[..., Any]) -> None:
    """`fn` takes the operator's arguments as ONNX values and returns ONNX values (onnxscript)."""
    TRANSLATIONS[operator] = fn


def present(table: dict[Operator, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """The rows whose operator exists in this process."""
    return {found: fn for operator, fn in table.items() if (found := look_up(operator))}


def look_up(operator: Operator) -> Operator | None:
    if not isinstance(operator, str):
        return operator
    space, name = operator.split("::")
    packet = getattr(getattr(torch.ops, space), name, None)
    return getattr(packet, "default", None)


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program without the operators that have a decomposition; untouched if it has none."""
    table = present(DECOMPOSITIONS)
    if any(operator in table for operator in operators_of(program)):
        program = program.run_decompositions(table)
    return program


def operators_of(program: ExportedProgram) -> list[Any]:
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return [node.target for m in modules for node in m.graph.nodes if node.op == "call_function"]


def sparse_experts(x: ir.Value, weight: ir.Value, ends: ir.Value) -> ir.Value:
    """One Slice and one MatMul per expert: at run time an expert multiplies its own tokens only.

    Unrolled, because onnxruntime runs this 1.8 to 45 times faster than a Loop over experts: it
    folds and packs each expert's weight when it loads the file, where a Loop copies it every time.
    """
    assert weight.shape is not None
    experts = int(weight.shape[0])  # type: ignore[arg-type]
    rows = op.Constant(value_ints=[0])
    stops = split(op.Cast(ends, to=ir.DataType.INT64), experts)
    matrices = split(op.Transpose(weight, perm=[0, 2, 1]), experts)
    products, start = [], rows
    for stop, matrix in zip(stops, matrices, strict=True):
        products.append(op.MatMul(op.Slice(x, start, stop, rows), op.Squeeze(matrix, rows)))
        start = stop
    out: ir.Value = op.Concat(*products, nothing(x, start, int(weight.shape[1])), axis=0)  # type: ignore[arg-type]
    return out


def nothing(x: ir.Value, start: ir.Value, width: int) -> ir.Value:
    """Zeros for the rows behind the last expert's."""
    rows = op.Sub(op.Shape(x, start=0, end=1), start)
    zeros: ir.Value = op.ConstantOfShape(op.Concat(rows, op.Constant(value_ints=[width]), axis=0))
    return zeros


def split(value: Any, parts: int) -> Sequence[Any]:
    return op.Split(value, axis=0, num_outputs=parts) if parts > 1 else [value]


def stable_sort(
    x: ir.Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[ir.Value, ir.Value]:
    """TopK of everything: among equals it takes the lower index first, which is to be stable."""
    size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    values, indices = op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)
    return values, indices


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor | None = None, *rest: Any, **kw: Any) -> Any:
    """Other libraries' grouped products of tokens, weight [E, K, O], are the same operator."""
    plain = not any(rest) and not any(v is not None for v in kw.values())
    if offs is None or not plain or x.dim() != 2 or weight.dim() != 3:
        return NotImplemented
    return linear_op(x, weight.transpose(1, 2), offs)


def convolution_3d(
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> ir.Value:
    strides, pads, dilations = ([*n] * 3 if len(n) == 1 else [*n] for n in (stride, padding, dilation))
    out: ir.Value = op.Conv(x, weight, bias, strides=strides, pads=pads * 2, dilations=dilations, group=groups)
    return out


def one_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *rest: Any, **kw: Any) -> Any:
    """Attention on [batch, tokens, width] is attention of one head."""
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3:
        return NotImplemented
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    mask = mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask
    return F.scaled_dot_product_attention(q, k, v, mask, *rest, **kw).squeeze(1)


def choice(condition: ir.Value, x: ir.Value, other: ir.Value) -> ir.Value:
    """onnxruntime has no Where of booleans."""
    out: ir.Value
    if x.dtype == ir.DataType.BOOL:
        out = op.Or(op.And(condition, x), op.And(op.Not(condition), other))
    else:
        out = op.Where(condition, x, other)
    return out


def smallest_of_many(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The k-th smallest is the last of the k smallest."""
    values, indices = x.topk(k, dim, largest=False, sorted=True)
    last = (t.narrow(dim, k - 1, 1) for t in (values, indices))
    found = tuple(t if keepdim else t.squeeze(dim) for t in last)
    return found[0], found[1]


register_translation(GROUPED_OPERATOR, sparse_experts)
register_translation(torch.ops.aten.sort.stable, stable_sort)
register_translation(torch.ops.aten.where.self, choice)
register_decomposition(torch.ops.aten._grouped_mm.default, grouped_mm)
register_decomposition("transformers::grouped_mm_fallback", grouped_mm)
register_decomposition(torch.ops.aten.kthvalue.default, smallest_of_many)
register_translation(torch.ops.aten.conv3d.default, convolution_3d)
register_decomposition(torch.ops.aten.scaled_dot_product_attention.default, one_head)
