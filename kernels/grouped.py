"""Grouped products: one linear layer per group of rows, and the whole mixture of experts around a generated function.

The mixture sorts the pairs of tokens and experts, reads its tokens through that order in front of the first products,
applies the function to their accumulators, and writes each pair's weighted result to the pair's own place, where the
pairs of a token lie side by side. Backward takes the accumulators that forward kept: one product with the function's
gradient behind it, ragged products for the weights, sums of rows for the routing weights. No atomics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from gatec.errors import GatecError
from gatec.kernel import Kernel
from gatec.kernels.functions import needed
from gatec.kernels.groups import FIND, LAUNCH, OUTER, SORT, SORTED, Term, biased, product
from gatec.kernels.pointwise import HEAD
from gatec.kernels.spelling import spell

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

CHECKS = '''
def expect(operands, dtypes):
    found = tuple(x.dtype for x in operands)
    if found != dtypes:
        raise TypeError(f"this kernel was generated for {dtypes}, not for {found}")


def together(pairs, fan):
    """The pairs of a token, side by side, added up."""
    return pairs if fan == 1 else pairs.unflatten(0, (-1, fan)).sum(1)
'''

LINEAR = '''
def forward(x, weight, ends, config=None):
    """x[rows of e] @ weight[e].T"""
    rows, (_, width, depth) = x.shape[0], weight.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if out.numel():
        config = config or config_for(x, rows, ends.shape[0])
        launch(linear, config, [out, x, weight], ends, None, 1, rows, width, depth)
    return out


def backward(grad, x, weight, ends, needs=(True, True, False)):
    x_grad = forward(grad, weight.transpose(1, 2), ends) if needs[0] else None
    weight_grad = outer(grad, x, ends)[0] if needs[1] else None
    return x_grad, weight_grad, None
'''

EXPERTS = '''
def part(x, rows, turned=False):
    """Some rows of each group's matrix or bias; nothing of nothing."""
    return None if x is None else (x.transpose(1, 2) if turned else x)[:, rows]


def forward({operands}, config=None):
    return run({operands}, None, config)


def forward_keeping({operands}, config=None):
    """The result, and the accumulators for backward."""
    last = {last}
    kept = torch.empty(({count}, chosen.numel(), last.shape[2]), dtype=x.dtype, device=x.device)
    return run({operands}, kept, config), kept


@torch.no_grad()
def run({operands}, kept, config=None):
    expect(({floats},), DTYPES)
    {firsts} = {views}
    last = {last}
    rows, width, wide = chosen.numel(), last.shape[2], last.shape[1]
    pairs = torch.empty((rows, wide), dtype=OUT, device=x.device)
    if not rows:
        return pairs
    hidden = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    {totals} = [None] * {count} if kept is None else kept.unbind(0)
    fan = rows // x.shape[0]
    order, ends, _ = sorted_pairs(chosen, last.shape[0])
    scale = scale.reshape(rows)
    config = config or config_for(x, rows, ends.shape[0])
    launch(
        hidden_forward, config, [hidden, {totals} x, {biases} {firsts}],
        ends, order, fan, rows, width, x.shape[1], products={count},
    )
    launch(down_forward, config, [pairs, hidden, scale, {last_bias} last], ends, order, fan, rows, wide, width)
    return together(pairs, fan)


@torch.no_grad()
def backward(grad, {operands}, needs={needs}, kept=None, config=None):
    """The gradient of each operand that needs one; the accumulators are computed again where none were kept."""
    if not chosen.numel():
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(({operands},), needs))
    if kept is None:
        kept = forward_keeping({operands}, config)[1]
    {totals} = kept.unbind(0)
    {firsts} = {views}
    last = {last}
    rows, width, wide = chosen.numel(), last.shape[2], x.shape[1]
    fan = rows // x.shape[0]
    order, ends, _ = sorted_pairs(chosen, last.shape[0])
    shape, scale = scale.shape, scale.reshape(rows)
    config = config or config_for(x, rows, ends.shape[0])
    grad = grad.to(x.dtype)
    (weighted, {slopes}) = (torch.empty((rows, width), dtype=x.dtype, device=x.device) for _ in range({many}))
    shares = torch.empty((rows, triton.cdiv(width, NARROW)), dtype=torch.float32, device=x.device)
    launch(
        hidden_backward, config, [weighted, {slopes} shares, {totals} scale, {bias}, grad, last.transpose(1, 2)],
        ends, order, fan, rows, width, grad.shape[1], heavy=True,
    )
    x_grad = None
    if needs[0]:
        pairs = torch.empty((rows, wide), dtype=x.dtype, device=x.device)
        launch(x_backward, config, [pairs, {slopes} {turned}], ends, order, fan, rows, wide, width)
        x_grad = together(pairs, fan)
    scale_grad = shares.sum(1).to(scale.dtype).view(shape) if needs[2] else None
{rooms}
{outers}
    return ({found})
'''

LEARNED = '''
def learn(weight, bias, *operands):
    """Write a ragged product and the sums of its rows where there is memory for them."""
    if weight is None and bias is None:
        return
    sums = outer(*operands, out=weight, total=bias is not None)[1]
    if bias is not None:
        bias.copy_(sums)
'''


@dataclass(frozen=True)
class Matrix:
    """One product of each group: some rows of its matrix in an operand, which may lie transposed, and of its bias."""

    weight: str
    bias: str | None = None
    rows: tuple[int, int, int] | None = None
    turned: bool = False

    def view(self, operand: str) -> str:
        return operand if not (self.rows or self.turned) else f"part({operand}, {self.slice}, {self.turned})"

    def bias_view(self, operand: str) -> str:
        return f"part({operand}, {self.slice})" if self.rows else operand

    @property
    def slice(self) -> str:
        return "slice({}, {}, {})".format(*self.rows) if self.rows else "slice(None)"


@dataclass(frozen=True)
class Experts:
    """down(function(first products)): the matrices of each product as they lie in the operands."""

    firsts: tuple[Matrix, ...]
    down: Matrix

    @property
    def operands(self) -> list[str]:
        """The order in which the kernel takes its tensors."""
        weights = dict.fromkeys(m.weight for m in self.firsts)
        biases = dict.fromkeys(m.bias for m in self.firsts if m.bias)
        last = [self.down.weight, *([self.down.bias] if self.down.bias else [])]
        return ["x", "chosen", "scale", *weights, *biases, *last]

    @property
    def biased(self) -> bool:
        return self.firsts[0].bias is not None

    @classmethod
    def apart(cls, products: int, *, biased: bool = False, down_bias: bool = False) -> Experts:
        """Each matrix, and each bias, an operand of its own."""
        firsts = tuple(Matrix(f"weight{i}", f"bias{i}" if biased else None) for i in range(products))
        return cls(firsts, Matrix("down", "down_bias" if down_bias else None))


def linear() -> Kernel:
    """The kernel of gatec::grouped_linear and its gradients; it serves all types of numbers."""
    head = '"""grouped_linear: written by gatec/kernels/grouped.py; do not edit."""\n\nimport torch\nimport triton\n'
    tail = ["put(out_ptr, total, row, col, inside, out_at)"]
    text = product("linear", [Term("total", "x", "weight")], ("out", "x", "weight"), tail)
    return Kernel("grouped_linear", joined(head + "import triton.language as tl\n", FIND, text, OUTER, LAUNCH, LINEAR))


def joined(*parts: str) -> str:
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def render(
    name: str, origin: str, plan: Experts, forward: fx.Graph, backward: fx.Graph, *, scale: torch.dtype
) -> Kernel:  # fmt: skip
    """A mixture by its plan; the graphs are its function's, by gatec.derive."""
    values = [n.meta["val"] for n in forward.find_nodes(op="placeholder")]
    dtype, count = values[0].dtype, len(values)
    if dtype not in DTYPES or any(v.dtype != dtype for v in values):
        raise GatecError("experts in one type of at most 32 bits", found=", ".join(str(v.dtype) for v in values))
    floats = [n for n in plan.operands if n != "chosen"]
    head = HEAD.format(
        name=name,
        origin=origin,
        maker="grouped",
        dtypes=tuple(scale if n == "scale" else dtype for n in floats),
        out=torch.promote_types(dtype, scale),
        wide="float32",
    )
    last = plan.down.bias is not None
    written = [
        hidden_forward(forward, count, plan.biased),
        down_forward(last),
        hidden_backward(forward, backward, count, last),
        x_backward(count),
    ]
    functions = needed((line for text in written for line in text.splitlines()), "float32")
    launchers = (CHECKS, SORTED, LAUNCH, LEARNED, launcher(plan))
    return Kernel(name, joined(head, FIND, SORT, *functions, *written, OUTER, *launchers))


def value(result: str) -> str:
    return result if result.isidentifier() else f"tl.full((ROWS, COLS), {result}, tl.float32)"


def numbered(kind: str, count: int) -> list[str]:
    return [f"{kind}{i}" for i in range(count)]


def inputs(graph: fx.Graph) -> dict[str, str]:
    """The function's own operands by the names of the accumulators."""
    names = [n.name for n in graph.find_nodes(op="placeholder") if n.name != "grad"]
    return {"grad": "pulled", **{name: f"total{i}" for i, name in enumerate(names)}}


def hidden_forward(graph: fx.Graph, count: int, bias: bool) -> str:
    totals, weights = numbered("total", count), numbered("weight", count)
    lines, results = spell(graph, inputs(graph))
    tail = [biased(t, f"bias{i}") for i, t in enumerate(totals)] if bias else []
    for total in totals:
        tail += [f"if {total}_ptr is not None:", f"    put({total}_ptr, {total}, row, col, inside, {total}_at)"]
    tail += [*lines, f"put(hidden_ptr, {value(str(results[0]))}, row, col, inside, hidden_at)"]
    terms = [Term(t, "x", w, shared=True) for t, w in zip(totals, weights, strict=True)]
    biases = numbered("bias", count) if bias else []
    return product("hidden_forward", terms, ("hidden", *totals, "x", *biases, *weights), tail)


def down_forward(bias: bool) -> str:
    tail = [biased("total", "down_bias")] if bias else []
    tail += [
        "total *= tl.load(scale_ptr + pair, mask=row < stop, other=0.0).to(tl.float32)",
        "put(pairs_ptr, total, pair, col, inside, pairs_at)",
    ]
    read = ("pairs", "hidden", "scale", *(["down_bias"] if bias else []), "down")
    return product("down_forward", [Term("total", "hidden", "down")], read, tail)


def hidden_backward(forward: fx.Graph, backward: fx.Graph, count: int, bias: bool) -> str:
    """What the second product pulls back, through the function; the function's value is computed again on the way."""
    totals = numbered("total", count)
    first, results = spell(forward, inputs(forward))
    second, grads = spell(backward, inputs(backward))
    tail = [f"{t} = fetch({t}_ptr, row, col, inside, {t}_at).to(tl.float32)" for t in totals]
    tail += [
        *first,
        f"hidden = {value(str(results[0]))}",
        "share = tl.sum(tl.where(inside, back * hidden, 0.0), 1)",
        *(["share += tl.where(side == 0, beside, 0.0)"] if bias else []),
        "put(shares_ptr, share[:, None], pair, side + tl.zeros((1, 1), tl.int64), row < stop, shares_at)",
        "scale = tl.load(scale_ptr + pair, mask=row < stop, other=0.0).to(tl.float32)",
        "put(weighted_ptr, hidden * scale, row, col, inside, weighted_at)",
        "pulled = back * scale",
        *second,
    ]
    tail += [
        f"put({t}_grad_ptr, {value(str(g))}, row, col, inside, {t}_grad_at)" for t, g in zip(totals, grads, strict=True)
    ]
    extra = []
    if bias:
        where = "down_bias_ptr + group.to(tl.int64) * down_bias_at[0] + k + deep"
        extra = [
            f"bias = tl.load({where}, mask=deep < depth - k, other=0.0).to(tl.float32)",
            "beside += tl.sum(grad.to(tl.float32) * bias[None, :], 1)",
        ]
    read = ("weighted", *(f"{t}_grad" for t in totals), "shares", *totals, "scale", "down_bias", "grad", "down")
    text = product("hidden_backward", [Term("back", "grad", "down", shared=True)], read, tail, extra)
    zeros = "    back = tl.zeros((ROWS, COLS), tl.float32)"
    return text.replace(zeros, f"{zeros}\n    beside = tl.zeros((ROWS,), tl.float32)") if bias else text


def x_backward(count: int) -> str:
    grads = [f"total{i}_grad" for i in range(count)]
    terms = [Term("total", g, f"weight{i}") for i, g in enumerate(grads)]
    tail = ["put(pairs_ptr, total, pair, col, inside, pairs_at)"]
    return product("x_backward", terms, ("pairs", *grads, *numbered("weight", count)), tail)


def launcher(plan: Experts) -> str:
    names, count = plan.operands, len(plan.firsts)
    number = {name: i for i, name in enumerate(names)}
    learned = [n for n in names if n not in ("x", "chosen", "scale")]
    matrices = numbered("first", count)
    biases = [m.bias_view(str(m.bias)) for m in plan.firsts if m.bias]
    down_bias = plan.down.bias
    return EXPERTS.format(
        operands=", ".join(names),
        floats=", ".join(n for n in names if n != "chosen"),
        count=count,
        many=count + 1,
        firsts=listed(matrices),
        views="(" + listed(m.view(m.weight) for m in plan.firsts) + ")",
        last=plan.down.view(plan.down.weight),
        totals=listed(numbered("total", count)),
        slopes=listed(f"total{i}_grad" for i in range(count)),
        turned=listed(f"{m}.transpose(1, 2)" for m in matrices),
        biases=listed(biases),
        last_bias=listed([down_bias] if down_bias else []),
        bias=str(down_bias),
        needs=tuple(n != "chosen" for n in names),
        rooms="\n".join(f"    {n}_grad = torch.empty_like({n}) if needs[{number[n]}] else None" for n in learned),
        outers="\n".join(f"    learn({text})" for text in learning(plan)),
        found=", ".join("None" if n == "chosen" else f"{n}_grad" for n in names),
    )


def listed(names: Iterable[str]) -> str:
    return "".join(f"{name}, " for name in names).rstrip()


def learning(plan: Experts) -> Iterator[str]:
    """What is passed on for the gradients of each matrix and its bias."""
    for i, m in enumerate(plan.firsts):
        bias = m.bias_view(f"{m.bias}_grad") if m.bias else "None"
        yield f"{m.view(m.weight + '_grad')}, {bias}, total{i}_grad, x, ends, order, fan, 'x', None"
    m = plan.down
    # The sums of grad, each row weighed as its pair was.
    yield f"{m.view(m.weight + '_grad')}, {m.bias and m.bias + '_grad'}, grad, weighted, ends, order, fan, 'y', scale"
