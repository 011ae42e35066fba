"""The laws of grouped products: as close to the truth as eager, for any split of the rows, in one type or another."""

from itertools import product

import pytest
import torch
from law import TYPES, error, in_every_type, poisoned
from sampled import some
from torch import Tensor
from torch.nn import functional as F

from gatec.derive import derive
from gatec.errors import GatecError
from gatec.kernels.grouped import Experts, Matrix, linear, render
from gatec.kernels.lint import complaints

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
LINEAR = linear()
SPLITS = {
    "even": (13, 26, 39), "empty": (0, 17, 17), "one group": (37,), "one row": (0, 0, 1), "all in one": (0, 41, 41, 41, 41),
}  # fmt: skip


def swiglu(gate, up):
    return F.silu(gate) * up


def clamped(gate, up):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def relu_squared(h):
    return F.relu(h).square()


def loop(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    starts = [0, *ends.tolist()]
    return torch.cat([x[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weight, strict=False)])


def mixture(fn, x, chosen, scale, *weights):
    """What the kernel stands for, spelled in eager torch; each weight is a matrix per expert and perhaps a bias."""
    fan, (expert, order) = chosen.shape[1], torch.sort(chosen.flatten(), stable=True)
    ends = torch.bincount(expert, minlength=len(weights[0][0])).cumsum(0)
    rows, products = x[order // fan], []
    for weight, bias in weights:
        y = loop(rows if len(products) < len(weights) - 1 else fn(*products), weight, ends)
        products.append(y if bias is None else y + bias[expert])
    pairs = products[-1] * scale.flatten()[order].unsqueeze(-1)
    return pairs[torch.argsort(order)].unflatten(0, (-1, fan)).sum(1)


def drawn(dtype, *, tokens=19, fan=2, experts=3, depth=37, width=23, count=2, bias=False):
    """Tokens, the experts that they chose, and weights whose layouts are those of slices of dense layers."""
    chosen = torch.stack([torch.randperm(experts)[:fan] for _ in range(tokens)])
    firsts = [poisoned((experts, width, depth), dtype, 0.3) for _ in range(count)]
    down = poisoned((depth, experts * width), dtype, 0.3).view(depth, experts, width).permute(1, 0, 2)
    biases = [poisoned((experts, w.shape[1]), dtype) if bias else None for w in (*firsts, down)]
    scale = torch.rand(tokens, fan).to(dtype)
    return poisoned((tokens, depth), dtype), chosen, scale, *zip((*firsts, down), biases, strict=True)


def flat(x, chosen, scale, *weights) -> list[Tensor]:
    """The same as a kernel takes them."""
    *firsts, (down, bias) = weights
    if bias is None:
        return [x, chosen, scale, *(w for w, _ in firsts), down]
    return [x, chosen, scale, *(w for w, _ in firsts), *(b for _, b in firsts), down, bias]


def check(fn, drawn_, made=None) -> None:
    x, _, scale, *weights = drawn_
    bias, given = weights[0][1] is not None, flat(*drawn_)
    made = made or kernel(fn, x.dtype, scale.dtype, bias)
    out = made.forward(*given)
    grad = torch.randn(out.shape).to(out.dtype)

    def results(dtype):
        leaves = [t.to(dtype).detach().requires_grad_() if t.is_floating_point() else t for t in given]
        count = len(weights) - 1
        firsts = leaves[3 : 3 + count]
        biases = leaves[3 + count : 3 + 2 * count] if bias else [None] * count
        last = (leaves[-2], leaves[-1]) if bias else (leaves[-1], None)
        y = mixture(fn, *leaves[:3], *zip(firsts, biases, strict=True), last)
        return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad.to(y.dtype))]

    ours = [out, *(g for g in made.backward(grad, *given) if g is not None)]
    truth, theirs = results(torch.float64), results(x.dtype)
    for i, (mine, other, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert mine.shape == true.shape and mine.dtype == other.dtype
        # Sums of products in another order: in float32 that alone is worth more than one rounding.
        floor = 2 * torch.finfo(mine.dtype).eps
        assert error(mine, true) <= 2 * max(error(other, true), floor), f"result {i}"


def kernel(fn, dtype, scale=None, bias=False):
    count = fn.__code__.co_argcount
    derived = derive(fn, [torch.empty(3, 5, dtype=dtype)] * count)
    plan = Experts.apart(count, biased=bias, down_bias=bias)
    made = render("kernel", "tests", plan, derived.forward, derived.backward, scale=scale or dtype)
    assert not complaints(made.source)
    return made


def test_the_product_breaks_no_rule() -> None:
    assert not complaints(LINEAR.source)


@in_every_type("split", SPLITS)
def test_product_of_each_group(split: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(SPLITS[split])
    x, weight = poisoned((SPLITS[split][-1], 71), dtype), poisoned((len(ends), 29, 71), dtype)
    grad = torch.randn(len(x), 29).to(dtype)

    def results(dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, weight)]
        y = loop(*leaves, ends)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    ours = [LINEAR.forward(x, weight, ends), *LINEAR.backward(grad, x, weight, ends)[:2]]
    for mine, other, true in zip(ours, results(dtype), results(torch.float64), strict=True):
        assert mine.shape == true.shape and mine.dtype == dtype
        assert error(mine, true) <= 2 * max(error(other, true), torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "dtype, fn",
    some(product(TYPES, [swiglu, clamped, relu_squared]), of=2),
    ids=lambda v: getattr(v, "__name__", str(v)),
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
def test_mixture_is_as_close_to_the_truth_as_eager(fn, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(fn, drawn(dtype, count=fn.__code__.co_argcount, bias=bias))


@pytest.mark.parametrize("tokens, fan, experts", [(1, 1, 1), (1, 3, 3), (5, 1, 7), (150, 1, 1), (7, 4, 4)])
def test_any_number_of_tokens_choices_and_experts(tokens: int, fan: int, experts: int) -> None:
    torch.manual_seed(0)
    check(swiglu, drawn(torch.float32, tokens=tokens, fan=fan, experts=experts), kernel(swiglu, torch.float32))


def test_routing_weights_may_be_wider_than_the_experts() -> None:
    x, chosen, scale, *weights = drawn(torch.bfloat16)
    made, given = kernel(swiglu, torch.bfloat16, torch.float32), flat(x, chosen, scale.float(), *weights)
    out = made.forward(*given)
    grads = made.backward(torch.ones_like(out), *given)
    assert out.dtype == grads[2].dtype == torch.float32 and grads[0].dtype == torch.bfloat16


def test_an_expert_without_tokens_learns_exactly_nothing() -> None:
    torch.manual_seed(0)
    x, _, *rest = drawn(torch.float32, bias=True)
    given = flat(x, torch.tensor([[0, 2]] * 19), *rest)
    grads = kernel(swiglu, torch.float32, bias=True).backward(torch.randn(19, 37), *given)
    for g in grads[3:]:
        assert [bool(e.any()) for e in g] == [True, False, True]


def test_no_token() -> None:
    x, chosen, scale, *weights = drawn(torch.float32, tokens=3)
    given, made = flat(x[:0], chosen[:0], scale[:0], *weights), kernel(swiglu, torch.float32)
    out = made.forward(*given)
    grads = made.backward(out, *given)
    assert out.shape == (0, 37) and not any(g.any() for g in grads if g is not None)


def test_saved_accumulators_are_the_ones_computed_again() -> None:
    given, module = flat(*drawn(torch.bfloat16)), kernel(swiglu, torch.bfloat16).load()
    out, saved = module.forward_keeping(*given)
    again, kept = module.backward(out, *given), module.backward(out, *given, kept=saved)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True) if a is not None)


def test_what_it_cannot_hold_is_refused() -> None:
    with pytest.raises(GatecError, match="experts in one type of at most 32 bits"):
        kernel(swiglu, torch.float64)
    with pytest.raises(TypeError, match="was generated for"):
        kernel(swiglu, torch.bfloat16).forward(*flat(*drawn(torch.float32)))


def test_operands_are_named_in_order() -> None:
    names = Experts.apart(2, biased=True).operands
    assert names == ["x", "chosen", "scale", "weight0", "weight1", "bias0", "bias1", "down"]


def halves(packed, interleaved: bool) -> list:
    """The two matrices, or biases, of one operand, by group."""
    width = packed.shape[1] // 2
    return [packed[:, 0::2], packed[:, 1::2]] if interleaved else [packed[:, :width], packed[:, width:]]


def in_one(interleaved: bool, turned: bool) -> Experts:
    rows = [(0, 46, 2), (1, 46, 2)] if interleaved else [(0, 23, 1), (23, 46, 1)]
    firsts = tuple(Matrix("weight0", "bias0", r, turned) for r in rows)
    return Experts(firsts, Matrix("down", "down_bias", None, turned))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    "interleaved, turned", [(False, False), (True, True)], ids=["halves", "interleaved, transposed"]
)
def test_matrices_lie_in_one_operand_and_so_do_their_gradients(interleaved, turned, dtype) -> None:
    torch.manual_seed(0)
    x, chosen, scale, *_ = drawn(dtype)
    sizes = [(3, 46, 37), (3, 37, 23)]
    weights = [poisoned((e, k, n) if turned else (e, n, k), dtype, 0.3) for e, n, k in sizes]
    given = [x, chosen, scale, weights[0], poisoned((3, 46), dtype), weights[1], poisoned((3, 37), dtype)]
    derived = derive(clamped, [torch.empty(3, 5, dtype=dtype)] * 2)
    made = render("kernel", "tests", in_one(interleaved, turned), derived.forward, derived.backward, scale=dtype)
    assert not complaints(made.source)
    grad = torch.randn(19, 37).to(dtype)

    def results(dtype):
        leaves = [t.to(dtype).detach().requires_grad_() if t.is_floating_point() else t for t in given]
        x, chosen, scale, packed, bias, down, down_bias = leaves
        packed, down = (w.transpose(1, 2) if turned else w for w in (packed, down))
        firsts = zip(halves(packed, interleaved), halves(bias, interleaved), strict=True)
        y = mixture(clamped, x, chosen, scale, *firsts, (down, down_bias))
        return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad.to(y.dtype))]

    out, kept = made.load().forward_keeping(*given)
    ours = [out, *(g for g in made.load().backward(grad, *given, kept=kept) if g is not None)]
    for mine, other, true in zip(ours, results(dtype), results(torch.float64), strict=True):
        assert mine.shape == true.shape and mine.dtype == dtype
        assert error(mine, true) <= 2 * max(error(other, true), 2 * torch.finfo(dtype).eps)


def test_what_needs_no_gradient_gets_none() -> None:
    given, module = flat(*drawn(torch.float32)), kernel(swiglu, torch.float32).load()
    out, kept = module.forward_keeping(*given)
    every = module.backward(out, *given, kept=kept)
    some = module.backward(out, *given, needs=(True, False, False, False, True, False), kept=kept)
    assert [g is None for g in some] == [False, True, True, True, False, True]
    assert torch.equal(some[0], every[0]) and torch.equal(some[4], every[4])
