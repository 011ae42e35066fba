"""The laws of kernels that hold whole rows: as close to the truth as eager, for any number of rows and any strides."""

import pytest
import torch
from equations import ROWS, Region, adaptive_norm, affine_norm, normed_gate, softmax_gate
from law import check, eager, error, in_every_type, poisoned
from torch.nn import functional as F

from gatec.derive import derive
from gatec.errors import GatecError
from gatec.kernels.lint import complaints
from gatec.kernels.rowwise import render

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def kernel(fn, operands):
    derived = derive(fn, operands, rows=True)
    made = render("kernel", "tests", derived.forward, derived.backward)
    assert not complaints(made.source)
    return made


@in_every_type("region", ROWS, lambda r: r.name)
def test_kernel_is_as_close_to_the_truth_as_eager(region: Region, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    operands = [poisoned(s, dtype) for s in region.shapes]
    check(region.fn, operands, kernel(region.fn, operands))


def test_float64_stays_float64() -> None:
    operands = [
        torch.randn(5, 19, dtype=torch.float64),
        torch.randn(5, 19, dtype=torch.float64),
        torch.ones(19).double(),
    ]
    made, grad = kernel(normed_gate, operands), torch.randn(5, 19, dtype=torch.float64)
    found = [made.forward(*operands), *made.backward(grad, *operands)]
    for mine, true in zip(found, eager(normed_gate, operands, grad), strict=True):
        assert error(mine, true) < 1e-13


def test_one_kernel_serves_any_number_of_rows() -> None:
    made = kernel(normed_gate, [torch.randn(2, 3, 33), torch.randn(2, 3, 33), torch.randn(33)])
    for rows in [(1,), (700,), (2, 5), (3, 1, 4)]:
        check(normed_gate, [torch.randn(*rows, 33), torch.randn(*rows, 33), torch.randn(33)], made)


def test_strides_and_broadcasts() -> None:
    x, scale = torch.randn(7, 3, 33).transpose(0, 1), torch.randn(2, 3, 1, 33)[0]
    made = kernel(adaptive_norm, [x, scale, scale])
    check(adaptive_norm, [x, scale, scale], made)
    check(adaptive_norm, [torch.randn(3, 7, 66)[..., ::2], scale, torch.randn(1, 7, 33)], made)
    columns = torch.randn(33, 21).t()
    check(
        normed_gate,
        [columns, torch.randn(21, 66)[:, 33:], torch.randn(33)],
        kernel(normed_gate, [columns, columns, torch.ones(33)]),
    )


def test_rows_that_all_see_an_operand_add_up_whatever_their_number() -> None:
    torch.manual_seed(1)
    operands = [torch.randn(1, 2999, 5), torch.randn(5), torch.randn(5), torch.randn(1)]
    check(affine_norm, operands, kernel(affine_norm, operands))


def test_one_number_for_all_rows() -> None:
    def scaled(x, scale):
        return F.softmax(x, -1) * scale

    # Positive terms: a sum that cancels has no error to speak of.
    operands, grad = [torch.randn(301, 33), torch.tensor(0.5)], torch.rand(301, 33)
    found = kernel(scaled, operands).backward(grad, *operands)[1]
    truth = eager(scaled, [x.double() for x in operands], grad.double())[2]
    assert found.shape == () and error(found, truth) < 1e-6


@pytest.mark.parametrize("shape", [(0, 33), (2, 0, 33)])
def test_no_rows(shape) -> None:
    operands = [torch.randn(shape), torch.randn(*shape[:-1], 1)]
    made = kernel(softmax_gate, [torch.randn(2, 33), torch.randn(2, 1)])
    out = made.forward(*operands)
    assert out.shape == shape and [g.shape for g in made.backward(out, *operands)] == [x.shape for x in operands]


def test_another_length_of_rows_is_refused_and_not_computed() -> None:
    made = kernel(softmax_gate, [torch.randn(2, 33), torch.randn(2, 1)])
    with pytest.raises(TypeError, match="rows of 33, not of 32"):
        made.forward(torch.randn(2, 32), torch.randn(2, 1))


def test_rows_that_fit_no_program_are_refused() -> None:
    with pytest.raises(GatecError, match="a row of at most 4096 elements"):
        kernel(softmax_gate, [torch.empty(2, 4097), torch.empty(2, 1)])


@pytest.mark.parametrize(
    "fn", [lambda x, y: x.mean(0, keepdim=True) * y, lambda x, y: x.cumsum(-1) * y, lambda x, y: F.softmax(x, 0) * y]
)
def test_what_is_no_function_of_rows_is_refused(fn) -> None:
    with pytest.raises(GatecError):
        kernel(fn, [torch.randn(4, 4), torch.randn(4, 4)])
