"""The laws of GEMM kernels: projections and gate as close to the truth as eager, at ragged shapes, with any operands."""

import pytest
import torch
from gemms import Gated, case, gates
from law import check, eager, error, in_every_type, poisoned
from sampled import some

from gatec.kernels.lint import complaints

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def operands(gated: Gated, dtype: torch.dtype) -> list[torch.Tensor]:
    depth = gated.shapes[gated.products[0].rows][-1]
    weights = {p.weight for p in gated.products}
    return [poisoned(s, dtype, depth**-0.5 if x in weights else 1.0) for x, s in gated.shapes.items()]


@in_every_type("gated", gates(), lambda g: g.name)
def test_kernel_is_as_close_to_the_truth_as_eager(gated: Gated, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = gated.kernel(dtype)
    assert not complaints(made.source), made.source
    check(gated, operands(gated, dtype), made)


def swiglu_at(rows: int, depth: int, columns: int) -> Gated:
    return next(g for g in gates(rows, depth, columns) if g.name == "swiglu")


WAYS = [("forward", {"tiles": t}) for t in ("128x128x64", "128x64x64", "64x128x64", "64x64x64", "16x64x64")]
WAYS += [("library", {}), ("library", {"together": True})]


@pytest.mark.parametrize("way, options", some(WAYS, of=2), ids=lambda v: str(v))
def test_every_way_is_right_and_keeps_the_projections(way: str, options: dict) -> None:
    torch.manual_seed(0)
    gated = swiglu_at(131, 67, 149)
    made, xs = gated.kernel(torch.bfloat16).load(), operands(gated, torch.bfloat16)
    wide = [x.double() for x in xs]
    truth, theirs = gated(*wide), gated(*xs)
    out, kept = getattr(made, f"{way}_keeping")(*xs, **options)
    assert error(out, truth) <= 2 * error(theirs, truth)
    projections = torch.cat([wide[0] @ w.t() for w in wide[1:]], -1)
    assert error(kept, projections) <= torch.finfo(torch.bfloat16).eps
    assert torch.equal(getattr(made, way)(*xs, **options), out)
    grad = torch.randn(out.shape).bfloat16()
    truths = eager(gated, wide, grad)[1:]
    for mine, true in zip(made.backward(grad, *xs, kept=kept), truths, strict=True):
        assert error(mine, true) <= 4 * torch.finfo(torch.bfloat16).eps


def test_weights_side_by_side_are_one_product() -> None:
    gated = swiglu_at(7, 16, 8)
    made, whole = gated.kernel(torch.float32).load(), torch.randn(16, 16)
    v, w = whole.split(8)
    assert torch.equal(made.side_by_side([v, w]), whole) and made.side_by_side([v, w]).data_ptr() == whole.data_ptr()
    assert made.side_by_side([w, v]) is None and made.side_by_side([v, w.clone()]) is None
    x, grad = torch.randn(7, 16), torch.randn(7, 8)
    found = [made.library(x, v, w, together=True), *made.backward(grad, x, v, w)]
    for mine, true in zip(found, eager(gated, [x, v, w], grad), strict=True):
        assert error(mine, true.double()) < 1e-5


def test_strides_and_ranks() -> None:
    gated = swiglu_at(7, 16, 8)
    made = gated.kernel(torch.float32)
    for x in (
        torch.randn(3, 5, 16),
        torch.randn(5, 3, 16).transpose(0, 1),
        torch.randn(3, 5, 32)[..., ::2],
        torch.randn(1, 16),
    ):
        check(gated, [x, torch.randn(16, 8).t(), torch.randn(8, 32)[:, 16:]], made)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    gated = swiglu_at(7, 16, 8)
    made, xs = gated.kernel(torch.float32), [torch.randn(shape), torch.randn(8, 16), torch.randn(8, 16)]
    out = made.forward(*xs)
    grads = made.backward(out, *xs)
    assert out.shape == (*shape[:-1], 8) and [g.shape for g in grads] == [x.shape for x in xs]
    assert not any(g.any() for g in grads)


def test_gradients_that_nobody_needs_are_not_made() -> None:
    gated = swiglu_at(7, 16, 8)
    made, xs = gated.kernel(torch.float32), [torch.randn(s) for s in gated.shapes.values()]
    grad = torch.randn(7, 8)
    assert made.backward(grad, *xs, needs=(False, False, False)) == (None, None, None)
    x, v, w = made.backward(grad, *xs, needs=(False, False, True))
    assert x is None and v is None and torch.equal(w, made.backward(grad, *xs)[2])


def test_many_tiles_in_their_order() -> None:
    gated = case("wide", lambda y: torch.tanh(y) * 2, (1100,), 4, 130, ["y = x @ w"])
    xs, made = [torch.randn(s) for s in gated.shapes.values()], gated.kernel(torch.float32)
    assert error(made.load().forward(*xs, tiles="64x32x16"), gated(*(x.double() for x in xs))) < 1e-5
