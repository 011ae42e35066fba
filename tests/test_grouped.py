"""Laws of `gatec::grouped_linear`: each expert sees its rows, however its weight lies in memory."""

from collections.abc import Callable

import pytest
import torch
from sampled import some
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gatec.errors import GatecError
from gatec.grouped import fuses, grouped_linear, linear_op, outer_op, product

E, M, D = 4, 8, 16  # experts, width of one, width of the model
SPLITS = {
    "even": [5, 10, 15, 20],
    "empty experts": [0, 7, 7, 20],
    "one expert": [0, 0, 20, 20],
    "no tokens": [0, 0, 0, 0],
}
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "stacked": lambda: torch.randn(E, M, D),
    "rows of a dense layer": lambda: torch.randn(E * M, D).view(E, M, D),
    "columns of a dense layer": lambda: torch.randn(D, E * M).view(D, E, M).permute(1, 0, 2),
    "transposed dense layer": lambda: torch.randn(D, E * M).view(D, E, M).permute(1, 2, 0),
    "odd widths": lambda: torch.randn(E, 7, 11),
    "every other column": lambda: torch.randn(E, M, 2 * D)[:, :, ::2],
    "one expert for all": lambda: torch.randn(M, D).expand(E, M, D),
    "unaligned address": lambda: torch.randn(E * M * D + 1)[1:].view(E, M, D),
}


def by_hand(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    expert = torch.searchsorted(ends, torch.arange(len(x)), right=True)
    return torch.einsum("nk,nok->no", x, weight[expert])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_expert_sees_its_rows(split: str, layout: str, dtype: torch.dtype) -> None:
    weight, ends = LAYOUTS[layout]().to(dtype), torch.tensor(SPLITS[split])
    x = torch.randn(SPLITS[split][-1], weight.shape[2], dtype=dtype)
    want = by_hand(x.double(), weight.double(), ends).to(dtype)
    for kind in (torch.int32, torch.int64):
        got = grouped_linear(x, weight, ends.to(kind))
        rtol = 2e-2 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(got, want, rtol=rtol, atol=1e-5)


def test_slices_of_a_dense_layer_are_not_copied() -> None:
    """The layouts a dense layer is split into are taken by torch's kernel as they are."""
    x = torch.randn(20, D)
    for layout in ("rows of a dense layer", "transposed dense layer"):
        assert fuses(x, LAYOUTS[layout]()), layout
    assert fuses(torch.randn(20, M), LAYOUTS["columns of a dense layer"]())
    for layout in ("odd widths", "every other column", "unaligned address"):
        assert not fuses(x, LAYOUTS[layout]()), layout


@pytest.mark.parametrize("layout", some(LAYOUTS, of=2))
def test_gradients(layout: str) -> None:
    weight = LAYOUTS[layout]().double().requires_grad_()
    x = torch.randn(6, weight.shape[2], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([2, 2, 5, 6])
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, ends), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: grouped_linear(x, w, ends), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unused_expert_learns_exactly_nothing(dtype: torch.dtype) -> None:
    weight = torch.randn(E, M, D, dtype=dtype, requires_grad=True)
    x = torch.randn(20, D, dtype=dtype)
    grouped_linear(x, weight, torch.tensor([0, 9, 9, 20])).square().sum().backward()
    assert weight.grad is not None
    assert [bool(g.any()) for g in weight.grad] == [False, True, False, True]


def test_the_gradient_reaches_the_dense_layer() -> None:
    dense = torch.randn(D, E * M, requires_grad=True)
    x, ends = torch.randn(20, M), torch.tensor([3, 8, 8, 20])
    grouped_linear(x, dense.view(D, E, M).permute(1, 0, 2), ends).sum().backward()
    assert dense.grad is not None
    untouched = dense.grad.view(D, E, M).abs().sum((0, 2)) == 0
    assert untouched.tolist() == [False, False, True, False]


@pytest.mark.parametrize("op", [linear_op, outer_op])
def test_operator_is_well_formed(op: torch._library.custom_ops.CustomOpDef) -> None:
    second = torch.randn(E, M, D) if op is linear_op else torch.randn(20, M)
    args = (torch.randn(20, D), second, torch.tensor([3, 8, 8, 20]))
    grads = tuple(a.requires_grad_() if a.is_floating_point() else a for a in args)
    torch.library.opcheck(op, grads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.sweep)])
def test_compiles_without_a_break_and_keeps_strides(backend: str) -> None:
    dense = torch.randn(D, E * M, requires_grad=True)
    twin = dense.detach().clone().requires_grad_()

    def run(x: Tensor, dense: Tensor, ends: Tensor) -> Tensor:
        return grouped_linear(x * 2, dense.view(D, E, M).permute(1, 0, 2), ends).tanh()

    x, ends = torch.randn(20, M), torch.tensor([3, 8, 8, 20])
    got = torch.compile(run, backend=backend, fullgraph=True)(x, dense, ends)
    want = run(x, twin, ends)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(dense.grad, twin.grad)


def test_exports_with_any_number_of_tokens() -> None:
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(E, M, D))

        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            return grouped_linear(x, self.weight, ends)

    module, ends = Experts(), torch.tensor([3, 8, 8, 20])
    dynamic = ({0: torch.export.Dim.DYNAMIC}, None)
    program = torch.export.export(module, (torch.randn(20, D), ends), dynamic_shapes=dynamic)
    other, later = torch.randn(33, D), torch.tensor([0, 1, 30, 33])
    torch.testing.assert_close(program.module()(other, later), module(other, later))


def test_autocast_is_followed() -> None:
    x, weight = torch.randn(20, D), torch.randn(E, M, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_linear(x, weight, torch.tensor([3, 8, 8, 20])).dtype == torch.bfloat16


def test_values_alone_are_those_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the operator is not called, but by whoever has to see it."""
    x, weight, ends = torch.randn(20, D), torch.nn.Parameter(torch.randn(E, M, D)), torch.tensor([3, 8, 8, 20])
    with torch.no_grad():
        traced = make_fx(grouped_linear)(x, weight, ends)
        assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [
            torch.ops.gatec.grouped_linear.default
        ]
        want = linear_op(x, weight, ends)
        monkeypatch.setattr("gatec.grouped.linear_op", None)
        torch.testing.assert_close(grouped_linear(x, weight, ends), want)


@pytest.mark.parametrize("ends", [[1, 1, 2, 3], [0, 0, 0, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_of_one_row(layout: str, ends: list[int]) -> None:
    weight, x = LAYOUTS[layout](), torch.randn(ends[-1], LAYOUTS[layout]().shape[2])
    torch.testing.assert_close(product(x, weight, torch.tensor(ends)), by_hand(x, weight, torch.tensor(ends)))


@pytest.mark.parametrize("ends", [[3, 2, 8, 20], [3, 8, 8, 21]])
def test_ends_that_do_not_cover_the_tokens_are_refused(ends: list[int]) -> None:
    x, weight = torch.randn(20, D).double(), torch.randn(E, M, D).double()
    with pytest.raises(GatecError) as error:
        grouped_linear(x, weight, torch.tensor(ends))
    assert str(error.value) == (
        "gatec: ends of experts that rise from 0 to at most 20, the number of rows\n"
        f"  found {ends}\n"
        "  where gatec::grouped_linear\n"
        "  try   sort the tokens by expert and pass the cumulative counts"
    )
