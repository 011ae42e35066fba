"""The laws of pointwise kernels: as close to the truth as eager, at any shape, stride and type."""

import pytest
import torch
from equations import REGIONS, SQUARE, Region, masked, residual, squeeze_excite, swiglu
from law import check, eager, kernel, poisoned
from torch.nn import functional as F

from gatec.errors import GatecError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# numpy warns where a GPU would quietly make an infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("region", REGIONS, ids=lambda r: r.name)
def test_kernel_is_as_close_to_the_truth_as_eager(region: Region, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(region.fn, [poisoned(s, dtype) for s in region.shapes])


def test_packed_halves_are_read_in_place() -> None:
    packed = poisoned((7, 2 * 129), torch.bfloat16)
    made = kernel(swiglu, list(packed.chunk(2, -1)))
    check(swiglu, list(packed.chunk(2, -1)), made)
    assert made.forward(*packed.chunk(2, -1)).is_contiguous()


def test_any_strides() -> None:
    x, gate = torch.randn(3, 5, 7, 4), torch.randn(3, 5, 1, 1)
    channels_last = x.to(memory_format=torch.channels_last)
    check(squeeze_excite, [channels_last, gate])
    made = kernel(squeeze_excite, [channels_last, gate])
    assert made.forward(channels_last, gate).is_contiguous(memory_format=torch.channels_last)
    check(swiglu, [torch.randn(9, 7).t(), torch.randn(7, 9)])
    check(swiglu, [torch.randn(7, 18)[:, ::2], torch.randn(1, 9).expand(7, 9)])
    heads = torch.randn(2, 5, 3, 8).transpose(1, 2)
    check(residual, [heads, torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 1)])
    check(residual, [torch.randn(2, 3, 2, 3, 5).permute(3, 1, 0, 2, 4), torch.randn(3, 3, 2, 2, 5),
                     torch.randn(3, 1, 2, 1, 5)])  # fmt: skip


def test_one_kernel_serves_every_shape_of_its_types() -> None:
    made = kernel(residual, [torch.randn(2, 2)] * 3)
    for shape in [(1,), (1, 1), (5,), (31,), (33, 1), (2, 3, 4), (1, 1025)]:
        check(residual, [torch.randn(shape) for _ in range(3)], made)


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((3, 0), (3, 1)), ((0, 5), (5,))])
def test_empty(shapes) -> None:
    x, gate = map(torch.randn, shapes)
    made = kernel(squeeze_excite, [x, gate])
    out = made.forward(x, gate)
    grads = made.backward(out, x, gate)
    assert out.shape == x.shape and [g.shape for g in grads] == [x.shape, gate.shape]
    assert not grads[1].any()


def test_gradients_that_nobody_needs_are_not_made() -> None:
    x = [torch.randn(4, 6) for _ in range(2)]
    made = kernel(swiglu, x)
    assert made.backward(x[0], *x, needs=(False, False)) == (None, None)
    gate, value = made.backward(x[0], *x, needs=(False, True))
    assert gate is None
    assert torch.equal(value, made.backward(x[0], *x)[1])


def test_types_follow_torch() -> None:
    half, single = torch.randn(4, 6).bfloat16(), torch.randn(4, 6)
    check(swiglu, [half, single])
    check(swiglu, [single, half])
    check(lambda x, s: x * s, [half, torch.tensor(0.3)])
    check(masked, [half, torch.rand(4, 6) > 0.5])
    check(lambda x, n: x * n + n, [half, torch.arange(6)])
    compared = kernel(lambda x: x > 0.5, [single])
    assert torch.equal(compared.forward(single), single > 0.5)
    assert compared.backward(single > 0.5, single) == (None,)


def test_float64_is_computed_in_float64() -> None:
    x = [torch.randn(3, 37, dtype=torch.float64) for _ in range(2)]
    for fn in (
        swiglu,
        lambda a, b: torch.tanh(a) * 0.1 + F.softplus(b),
        lambda a, b: torch.expm1(a) * b.clamp(max=0.1),
    ):
        made = kernel(fn, x)
        truth = eager(fn, x, torch.ones(3, 37, dtype=torch.float64))
        ours = [made.forward(*x), *made.backward(torch.ones(3, 37, dtype=torch.float64), *x)]
        torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-14)


def test_a_cast_written_by_the_author_rounds() -> None:
    x = torch.randn(4, 33)
    made = kernel(lambda x: x.to(torch.bfloat16).float() * 3, [x])
    assert torch.equal(made.forward(x), x.bfloat16().float() * 3)
    # One to an operand's own type is how a float32 section ends, and would only lose digits.
    half = x.bfloat16()
    text = kernel(lambda x, y: (x.float() * 3).to(y.dtype) * y, [half, half]).source
    assert "tl.bfloat16" not in text


def test_same_input_same_text() -> None:
    x = [torch.randn(SQUARE).bfloat16() for _ in range(2)]
    assert kernel(swiglu, x).source == kernel(swiglu, x).source


def test_operands_keep_their_names() -> None:
    text = kernel(lambda shape, tl, mul, x_grad: shape * tl + mul * x_grad, [torch.randn(2, 3)] * 4).source
    assert "def forward(shape_, tl_, mul, x_grad_):" in text


def test_other_types_are_refused() -> None:
    made = kernel(swiglu, [torch.randn(2, 3)] * 2)
    with pytest.raises(TypeError, match=r"was generated for .*float32.*, not for .*bfloat16"):
        made.forward(*[torch.randn(2, 3).bfloat16()] * 2)


@pytest.mark.parametrize(
    "fn, words",
    [
        (torch.atan, "gatec: a Triton spelling of aten.atan.default\n"
         "  try   add it to SPELLING in gatec.kernels.spelling"),
        (lambda x: x**2.3, "gatec: a Triton spelling of aten.pow\n  found the exponent 2.3"),
        (lambda x: 3**x, "gatec: a Triton spelling of aten.pow\n  found the base 3"),
        (lambda x: x.sum(), "gatec: a pointwise function of operands that broadcast to (2, 3)\n"
                            "  found a result of shape ()"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"),
         "gatec: a Triton spelling of aten.div.Tensor_mode\n"
         "  try   add it to SPELLING in gatec.kernels.spelling"),
    ],
)  # fmt: skip
def test_what_cannot_be_spelled_is_said(fn, words) -> None:
    with pytest.raises(GatecError) as caught:
        kernel(fn, [torch.randn(2, 3)])
    assert str(caught.value) == words
