"""Operands whose elements lie further apart than a number of 32 bits can say."""

import pytest
import torch
from equations import normed_gate
from law import kernel
from test_rowwise import kernel as of_rows

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
