"""Operands whose elements lie further apart than a number of 32 bits can say."""

import pytest
import torch
from equations import normed_gate
from gemms import gates
from law import kernel
from recurrences import RECURRENCES
from test_grouped_kernel import LINEAR
from test_router import router, softmax
from test_rowwise import kernel as of_rows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
FAR = 2**28  # eight of these are one more than 32 bits hold
COLUMNS = 9


def apart(rows: int, wide: bool) -> torch.Tensor:
    """Untouched memory costs nothing: gigabytes of addresses, a few pages of memory."""
    strides = (1, FAR) if wide else (2**30 + 1, 1)
    space = torch.empty((COLUMNS - 1) * FAR + rows if wide else (rows - 1) * strides[0] + COLUMNS, dtype=torch.float16)
    x = space.as_strided((rows, COLUMNS), strides)
    return x.copy_(torch.randn(rows, COLUMNS))


def gate(x, y):
    return torch.sigmoid(x) * y


@pytest.mark.parametrize("wide", [True, False], ids=["columns apart", "rows apart"])
@pytest.mark.parametrize("rows", [True, False], ids=["rowwise", "pointwise"])
def test_elements_beyond_two_to_the_thirty_one(rows: bool, wide: bool) -> None:
    near = [torch.randn(3, COLUMNS).half(), torch.randn(3, COLUMNS).half()]
    fn, extra, make = (normed_gate, [torch.ones(COLUMNS).half()], of_rows) if rows else (gate, [], kernel)
    near += extra
    far = [apart(3, wide).copy_(near[0]), *near[1:]]
    assert max(s * (n - 1) for s, n in zip(far[0].stride(), far[0].shape, strict=True)) >= 2**31
    made = make(fn, near)
    assert torch.equal(made.forward(*far), made.forward(*near))
    grad = torch.randn(3, COLUMNS).half()
    found = made.load().backward(grad, far[0], *near[1:], needs=(False, *[True] * (len(near) - 1)))
    for mine, theirs in zip(found[1:], made.backward(grad, *near)[1:], strict=True):
        assert torch.equal(mine, theirs)


def product(x):
    gated = next(g for g in gates(3, COLUMNS, 5) if g.name == "swiglu")
    weights = [torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(n)).half() for n in (0, 1)]
    return gated.kernel(torch.float16).forward(x, *weights)


def routed(x):
    weights, chosen = router(softmax, COLUMNS, 2, torch.float16).load().chosen(x)
    return torch.cat([weights, chosen], -1)


def grouped(x):
    weight = torch.randn(2, 5, COLUMNS, generator=torch.Generator().manual_seed(0)).half()
    return LINEAR.forward(x, weight, torch.tensor([1, 3]))


def scanned(x):
    recurrence = next(r for r in RECURRENCES if r.name == "mingru")
    operands = [x.unsqueeze(0), x.unsqueeze(0)]
    return recurrence.kernel([torch.empty_like(x, memory_format=torch.contiguous_format) for x in operands]).forward(
        *operands
    )


@pytest.mark.parametrize("run", [product, routed, grouped, scanned])
def test_rows_beyond_two_to_the_thirty_one(run) -> None:
    near = torch.randn(3, COLUMNS).half()
    far = apart(3, wide=False).copy_(near)
    assert far.stride(0) * 2 >= 2**31
    assert torch.equal(run(far), run(near))
