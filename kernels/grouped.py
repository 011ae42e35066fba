"""Grouped products: one linear layer per group of rows, and the whole mixture of experts around a generated function.

The mixture sorts the pairs of tokens and experts, reads its tokens through that order in front of the first products,
applies the function to their accumulators, and writes each pair's weighted result to the pair's own place, where the
pairs of a token lie side by side. Backward takes the accumulators that forward kept: one product with the function's
gradient behind it, ragged products for the weights, sums of rows for the routing weights. No atomics.
"""

from collections.abc import Sequence

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
def forward({operands}, config=None):
    return saving({operands}, keep=False, config=config)[0]


def saving({operands}, keep=True, config=None):
    """The result, and the accumulators that backward takes."""
    expect(({floats},), DTYPES)
    rows, width, wide = chosen.numel(), down.shape[2], down.shape[1]
    hidden = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    ({totals},) = ({rooms},)
    pairs = torch.empty((rows, wide), dtype=OUT, device=x.device)
    if not rows:
        return pairs, {totals}
    fan = rows // x.shape[0]
    order, ends, _ = sorted_pairs(chosen, down.shape[0])
    scale = scale.reshape(rows)
    config = config or config_for(x, rows, ends.shape[0])
    launch(
        hidden_forward, config, [hidden, {totals}, {firsts}],
        ends, order, fan, rows, width, x.shape[1], products={count},
    )
    launch(down_forward, config, [pairs, hidden, {lasts}], ends, order, fan, rows, wide, width)
    return together(pairs, fan), {totals}


def backward(grad, {operands}, needs={needs}, saved=None, config=None):
    """The gradient of each operand; the accumulators are computed again where none were saved."""
    ({totals},) = saved or saving({operands}, config=config)[1:]
    rows, width = chosen.numel(), down.shape[2]
    if not rows:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(({operands},), needs))
    fan = rows // x.shape[0]
    order, ends, _ = sorted_pairs(chosen, down.shape[0])
    scale = scale.reshape(rows)
    config = config or config_for(x, rows, ends.shape[0])
    grad = grad.to(x.dtype)
    (weighted, {grads}) = (torch.empty((rows, width), dtype=x.dtype, device=x.device) for _ in range({many}))
    shares = torch.empty((rows, triton.cdiv(width, NARROW)), dtype=torch.float32, device=x.device)
    launch(
        hidden_backward, config, [weighted, {grads}, shares, {totals}, scale, {bias}, grad, down.transpose(1, 2)],
        ends, order, fan, rows, width, grad.shape[1], heavy=True,
    )
    down_grad, bias_grad = outer(grad, weighted, ends, order, fan, "y", scale, {biased})
    pairs = torch.empty((rows, x.shape[1]), dtype=x.dtype, device=x.device)
    launch(x_backward, config, [pairs, {grads}, {weights}], ends, order, fan, rows, x.shape[1], width)
{outers}
    found = {found}
    return tuple(g if need else None for g, need in zip(found, needs))
'''


def linear() -> Kernel:
    """The kernel of gatec::grouped_linear and its gradients; it serves all types of numbers."""
    head = '"""grouped_linear: written by gatec/kernels/grouped.py; do not edit."""\n\nimport torch\nimport triton\n'
    tail = ["put(out_ptr, total, row, col, inside, out_at)"]
    text = product("linear", [Term("total", "x", "weight")], ("out", "x", "weight"), tail)
    return Kernel("grouped_linear", joined(head + "import triton.language as tl\n", FIND, text, OUTER, LAUNCH, LINEAR))


def joined(*parts: str) -> str:
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def operands(products: int, *, biased: bool, down_bias: bool) -> list[str]:
    """The order in which a mixture's kernel takes its tensors."""
    numbers = range(products)
    biases = [f"bias{i}" for i in numbers] if biased else []
    last = ["down", *(["down_bias"] if down_bias else [])]
    return ["x", "chosen", "scale", *(f"weight{i}" for i in numbers), *biases, *last]


def render(
    name: str, origin: str, forward: fx.Graph, backward: fx.Graph, *,
    scale: torch.dtype, biased: bool = False, down_bias: bool = False,
) -> Kernel:  # fmt: skip
    """A mixture whose experts are down(function(first products)); the graphs are the function's, by gatec.derive."""
    values = [n.meta["val"] for n in forward.find_nodes(op="placeholder")]
    dtype, count = values[0].dtype, len(values)
    if dtype not in DTYPES or any(v.dtype != dtype for v in values):
        raise GatecError("experts in one type of at most 32 bits", found=", ".join(str(v.dtype) for v in values))
    names = operands(count, biased=biased, down_bias=down_bias)
    floats = [n for n in names if n != "chosen"]
    head = HEAD.format(
        name=name,
        origin=origin,
        maker="grouped",
        dtypes=tuple(scale if n == "scale" else dtype for n in floats),
        out=torch.promote_types(dtype, scale),
        wide="float32",
    )
    written = [
        hidden_forward(forward, count, biased),
        down_forward(down_bias),
        hidden_backward(forward, backward, count, down_bias),
        x_backward(count),
    ]
    functions = needed((line for text in written for line in text.splitlines()), "float32")
    launchers = (CHECKS, SORTED, LAUNCH, launcher(names, floats, count, biased, down_bias))
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


def launcher(names: Sequence[str], floats: Sequence[str], count: int, bias: bool, down_bias: bool) -> str:
    totals, weights = numbered("total", count), numbered("weight", count)
    outers = [
        f"    weight{i}_grad, bias{i}_grad = outer(total{i}_grad, x, ends, order, fan, 'x', None, {bias})"
        for i in range(count)
    ]
    found = {
        "x": "together(pairs, fan)", "chosen": "None",
        "scale": "shares.sum(1).to(scale.dtype).view(chosen.shape)",
        "down": "down_grad", "down_bias": "bias_grad.to(x.dtype)",
        **{w: f"{w}_grad" for w in weights}, **{f"bias{i}": f"bias{i}_grad.to(x.dtype)" for i in range(count)},
    }  # fmt: skip
    biases = numbered("bias", count) if bias else []
    return EXPERTS.format(
        operands=", ".join(names),
        floats=", ".join(floats),
        totals=", ".join(totals),
        rooms=", ".join(["torch.empty_like(hidden) if keep else None"] * count),
        firsts=", ".join(["x", *biases, *weights]),
        lasts=", ".join(["scale", *(["down_bias"] if down_bias else []), "down"]),
        needs=tuple(n != "chosen" for n in names),
        grads=", ".join(f"{t}_grad" for t in totals),
        many=count + 1,
        count=count,
        bias="down_bias" if down_bias else "None",
        biased=down_bias,
        # Transposed, each weight maps its own product's gradient back.
        weights=", ".join(f"{w}.transpose(1, 2)" for w in weights),
        outers="\n".join(outers),
        found="(" + ", ".join(found[n] for n in names) + ")",
    )
