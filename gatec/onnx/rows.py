"""Which dimensions of a value are rows that nothing mixes: one rule per operator, read from result to operands.

A rule gets the dimensions of the result that are rows and says which dimensions of each operand are, or that the operand has none
(a weight). An operator without a rule is taken to mix rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gatec.onnx.sizes import Dim, attribute, constant, dims, quotient


@dataclass(frozen=True)
class Span:
    """Neighbouring dimensions that are rows: each by itself, or all in one that may hold more behind them."""

    start: int
    count: int

    def __contains__(self, axis: int) -> bool:
        return self.start <= axis < self.start + self.count

    def moved(self, by: int) -> Span:
        return Span(self.start + by, self.count)


class Mixed(Exception):
    """Rows are not independent here."""


Spans = list[Span | None]
Rule = Callable[[ir.Node, Span, Sequence[Dim]], Spans]
ALONG = "Softmax LogSoftmax Hardmax CumSum TopK Split ArgMax ArgMin LpNormalization"
POINTWISE = """
    Abs Acos Add And Asin Atan BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu
    Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh
    ThresholdedRelu Where Xor
"""
FIRST = """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool GroupNormalization
    InstanceNormalization LRN MaxPool SpaceToDepth
"""
REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}  # which operand is the shape of the result


def operands(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    """The rows of each operand, given those of the result."""
    rule = RULES.get(node.op_type)
    if rule is None or span.start < 0:
        raise Mixed(node.op_type)
    return rule(node, span, rows)


def shape(value: ir.Value | None) -> tuple[Dim, ...]:
    found = dims(value)
    if found is None:
        raise Mixed(f"the unknown shape of {value.name if value else 'nothing'}")
    return found


def only(node: ir.Node, span: Span) -> Spans:
    return [span, *[None] * (len(node.inputs) - 1)]


def spread(value: ir.Value | None, rank: int, span: Span) -> Span | None:
    """The rows of an operand that is broadcast to `rank` dimensions."""
    own = () if value is None else shape(value)
    shift = rank - len(own)
    along = [own[i - shift] if i >= shift else 1 for i in range(span.start, span.start + span.count)]
    return None if all(d == 1 for d in along) else span.moved(-shift)


def pointwise(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    return [spread(v, len(shape(node.outputs[0])), span) for v in node.inputs]


def first(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    if span != Span(0, 1):
        raise Mixed(node.op_type)
    return only(node, span)


def axis_of(node: ir.Node, default: int, rank: int) -> int:
    if node.op_type == "CumSum":
        found = constant(node.inputs[1])
        if found is None:
            raise Mixed(node.op_type)
        return int(found.reshape(-1)[0]) % rank
    return int(attribute(node, "axis", default)) % rank


def along(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    rank = len(shape(node.inputs[0]))
    axis = axis_of(node, 0 if node.op_type in ("Split", "ArgMax", "ArgMin") else -1, rank)
    gone = node.op_type.startswith("Arg") and not attribute(node, "keepdims", 1)
    return only(node, without(node, span, [axis], rank, kept=not gone))


def without(node: ir.Node, span: Span, axes: Sequence[int], rank: int, *, kept: bool) -> Span:
    """The rows before some axes were worked along, which must not be rows themselves."""
    left = [i for i in range(rank) if kept or i not in axes]
    before = [left[i] for i in range(span.start, span.start + span.count)]
    if set(before) & set(axes) or before != list(range(before[0], before[0] + len(before))):
        raise Mixed(node.op_type)
    return Span(before[0], span.count)


def numbers(node: ir.Node, index: int, name: str) -> list[int] | None:
    """Axes that are an operand in newer operators and an attribute in older ones."""
    if len(node.inputs) > index and node.inputs[index] is not None:
        found = constant(node.inputs[index])
        if found is None:
            raise Mixed(node.op_type)
        return [int(n) for n in found.reshape(-1)]
    own = attribute(node, name)
    return None if own is None else [int(n) for n in own]


def reduction(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    axes, rank = numbers(node, 1, "axes"), len(shape(node.inputs[0]))
    if not axes:
        raise Mixed(node.op_type)
    return only(node, without(node, span, [a % rank for a in axes], rank, kept=bool(attribute(node, "keepdims", 1))))


def normalised(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    rank = len(shape(node.inputs[0]))
    return only(node, without(node, span, range(int(attribute(node, "axis", -1)) % rank, rank), rank, kept=True))


def product(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    a, b = (shape(v) for v in node.inputs)
    rank = max(len(a), len(b))
    if min(len(a), len(b)) < 2 or (rank - 1 in span and span.count > 1):
        raise Mixed(node.op_type)
    if rank - 1 in span:
        return [None, Span(len(b) - 1, 1)]
    if rank - 2 not in span:
        return [spread(v, rank, span) for v in node.inputs]
    batch = [b[i - rank] for i in range(span.start, rank - 2) if i - rank >= -len(b)]
    if any(d != 1 for d in batch):
        raise Mixed(node.op_type)
    return [spread(node.inputs[0], rank, span), None]


def affine(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    if span != Span(0, 1):
        raise Mixed(node.op_type)
    bias = [spread(v, 2, span) for v in node.inputs[2:]]
    return [Span(1 if attribute(node, "transA", 0) else 0, 1), None, *bias]


def transposed(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    perm = list(attribute(node, "perm") or range(len(shape(node.inputs[0])))[::-1])
    before = perm[span.start : span.start + span.count]
    if before != list(range(before[0], before[0] + span.count)):
        raise Mixed(node.op_type)
    return [Span(before[0], span.count)]


def reshaped(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    """Rows lie behind the same number of elements before and after, and what lies behind them stays theirs."""
    before, after = shape(node.inputs[0]), shape(node.outputs[0])
    for start in range(len(before)):
        if quotient(before[:start], after[: span.start]) != [1]:
            continue
        for count in sorted({len(rows), 1}, reverse=True):
            held = before[start : start + count]
            if tuple(held) == tuple(rows) or (count == 1 and quotient(held, rows) is not None):
                return only(node, Span(start, count))
    raise Mixed(node.op_type)


def squeezed(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    axes, rank = numbers(node, 1, "axes"), len(shape(node.inputs[0]))
    if node.op_type == "Squeeze":
        gone = [i for i, d in enumerate(shape(node.inputs[0])) if d == 1] if axes is None else [a % rank for a in axes]
        return only(node, without(node, span, gone, rank, kept=False))
    added = [a % (rank + len(axes or [])) for a in axes or []]
    if any(a in span for a in added):
        raise Mixed(node.op_type)
    return only(node, span.moved(-sum(a < span.start for a in added)))


def expanded(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    return [spread(node.inputs[0], len(shape(node.outputs[0])), span), None]


def filled(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    return [None]


def joined(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    if axis_of(node, 0, len(shape(node.outputs[0]))) in span:
        raise Mixed(node.op_type)
    return [span for _ in node.inputs]


def cut(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    rank = len(shape(node.inputs[0]))
    axes = numbers(node, 3, "axes")
    if any((a % rank) in span for a in (range(rank) if axes is None else axes)):
        raise Mixed(node.op_type)
    return only(node, span)


def padded(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    rank, pads = len(shape(node.inputs[0])), numbers(node, 1, "pads")
    if pads is None or len(node.inputs) > 3 or len(pads) != 2 * rank:
        raise Mixed(node.op_type)
    if any(pads[i] or pads[i + rank] for i in range(span.start, span.start + span.count)):
        raise Mixed(node.op_type)
    return only(node, span)


def gathered(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    index, rank = len(shape(node.inputs[1])), len(shape(node.inputs[0]))
    axis = axis_of(node, 0, rank)
    if span.start + span.count <= axis:
        return [span, None]
    if span.start >= axis + index:
        return [span.moved(1 - index), None]
    if span.start >= axis and span.start + span.count <= axis + index:
        return [None, span.moved(-axis)]
    raise Mixed(node.op_type)


def by_letters(node: ir.Node, span: Span, rows: Sequence[Dim]) -> Spans:
    equation = str(attribute(node, "equation")).replace(" ", "")
    terms, arrow, out = equation.partition("->")
    if not arrow or "." in equation:
        raise Mixed(node.op_type)
    letters = out[span.start : span.start + span.count]
    found: Spans = []
    for term in terms.split(","):
        if letters in term:
            found.append(Span(term.index(letters), span.count))
        elif set(letters) & set(term):
            raise Mixed(node.op_type)
        else:
            found.append(None)
    return found


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE.split(), pointwise),
    **dict.fromkeys(FIRST.split(), first),
    **dict.fromkeys(ALONG.split(), along),
    **dict.fromkeys([f"Reduce{name}" for name in REDUCTIONS.split()], reduction),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], normalised),
    **dict.fromkeys(["Concat", "GatherElements", "ScatterElements"], joined),
    **dict.fromkeys(["Squeeze", "Unsqueeze"], squeezed),
    "MatMul": product,
    "Gemm": affine,
    "Transpose": transposed,
    "Reshape": reshaped,
    "Expand": expanded,
    "ConstantOfShape": filled,
    "Slice": cut,
    "Pad": padded,
    "Gather": gathered,
    "Einsum": by_letters,
}


def packed(own: Sequence[Dim], span: Span, rows: Sequence[Dim], name: str) -> list[Dim]:
    """The shape of a value when only the chosen rows are left of it."""
    if span.count == len(rows):
        inner: list[Dim] = [*[1] * (span.count - 1), name]
        exact = span.count > 1 or own[span.start] == rows[0]
        if exact:
            return [*own[: span.start], *inner, *own[span.start + span.count :]]
    rest = quotient(own[span.start : span.start + 1], rows)
    if rest is None:
        raise Mixed("a Reshape")
    whole = "*".join([name, *[str(d) if str(d).isalnum() else f"({d})" for d in rest if d != 1]])
    return [*own[: span.start], whole, *own[span.start + 1 :]]


Ways = dict[ir.Value, dict[Span | None, None]]  # of every value, how it is read: with which rows, or whole


def spans(
    nodes: Sequence[ir.Node], exits: dict[ir.Value, Span], rows: Sequence[Dim]
) -> tuple[Ways, dict[ir.Node, Spans]]:
    """How every value in and before a part is read, and of every node its operands; raises if rows mix."""
    found: Ways = {v: {span: None} for v, span in exits.items()}
    reads: dict[ir.Node, Spans] = {}
    for node in reversed(nodes):
        ways = list(dict.fromkeys(way for out in node.outputs for way in found.get(out, {})))
        if len(ways) > 1:
            raise Mixed(f"{node.op_type}, read in two ways,")
        for out in node.outputs:
            found[out] = dict.fromkeys(ways)
        span = ways[0] if ways else None
        reads[node] = [None] * len(node.inputs) if span is None else operands(node, span, rows)
        for value, read in zip(node.inputs, reads[node], strict=True):
            if value is not None:
                found.setdefault(value, {})[read] = None
    return found, reads
