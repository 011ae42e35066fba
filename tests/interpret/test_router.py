"""The laws of routers: torch's scores, its choices and its gradients, for ties, infinities and any number of rows."""

import pickle

import pytest
import torch
from law import error, poisoned
from torch import nn
from torch.nn import functional as F

from gatec import lower
from gatec.capture import Call, trace
from gatec.derive import derive
from gatec.dispatch.forms import Form
from gatec.dispatch.verify import Trial, verified
from gatec.errors import GatecError
from gatec.kernels.lint import complaints
from gatec.kernels.router import Groups, render
from gatec.making import made_for
from gatec.routers import routings

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def softmax(logits):
    return F.softmax(logits, -1)


def sigmoid(logits):
    return torch.sigmoid(logits)


def root_softplus(logits):
    return F.softplus(logits).sqrt()


def router(score, columns, choices, dtype=torch.float32, **options):
    derived = derive(score, [torch.empty(3, columns, dtype=dtype)], rows=True)
    made = render("router", "tests", derived.forward, derived.backward, choices=choices, out=dtype, **options)
    assert not complaints(made.source)
    return made


def by_hand(score, logits, choices, *, bias=None, normalised=True, eps=0.0, factor=1.0):
    scores = score(logits)
    chosen = (scores if bias is None else scores + bias).topk(choices, -1).indices
    weights = scores.gather(-1, chosen)
    weights = weights / (weights.sum(-1, keepdim=True) + eps) if normalised else weights
    return weights * factor, chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", [softmax, sigmoid, root_softplus])
@pytest.mark.parametrize("options", [{}, {"normalised": False, "factor": 2.5}, {"eps": 1e-3}], ids=str)
def test_weights_and_gradients_are_as_close_to_the_truth_as_eager(score, options, dtype) -> None:
    torch.manual_seed(0)
    logits, made = poisoned((37, 23), dtype, 2.0), router(score, 23, 5, dtype, **options)
    weights, chosen = made.load().chosen(logits)
    grad = torch.randn(37, 5).to(dtype)

    def results(dtype):
        leaf = logits.to(dtype).requires_grad_()
        scores = score(leaf).gather(-1, chosen)
        if options.get("normalised", True):
            scores = scores / (scores.sum(-1, keepdim=True) + options.get("eps", 0.0))
        w = scores * options.get("factor", 1.0)
        return [w.detach(), *torch.autograd.grad(w, leaf, grad.to(dtype))]

    assert torch.equal(chosen, by_hand(score, logits.float(), 5, **options)[1])
    ours = [weights, *made.backward(grad, logits)]
    for mine, other, true in zip(ours, results(dtype), results(torch.float64), strict=True):
        assert mine.shape == true.shape and mine.dtype == dtype
        assert error(mine, true) <= 2 * max(error(other, true), torch.finfo(dtype).eps)


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(2, 9, 16), torch.randn(16)
    made = router(sigmoid, 16, 4, biased=True)
    weights, chosen = made.load().chosen(logits, bias)
    want, numbers = by_hand(sigmoid, logits, 4, bias=bias)
    assert torch.equal(chosen, numbers) and not torch.equal(chosen, by_hand(sigmoid, logits, 4)[1])
    torch.testing.assert_close(weights, want)
    assert made.backward(torch.ones_like(weights), logits, bias)[1] is None


@pytest.mark.parametrize("columns, choices", [(1, 1), (2, 2), (16, 16), (60, 8), (512, 3)])
def test_any_number_of_columns_and_choices(columns: int, choices: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, columns)
    weights, chosen = router(softmax, columns, choices).load().chosen(logits)
    want, numbers = by_hand(softmax, logits, choices)
    assert torch.equal(chosen, numbers)
    torch.testing.assert_close(weights, want)


def test_ties_infinities_and_nan_choose_distinct_columns() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[1.0] * 6, [-inf, 0, -inf, -inf, -inf, -inf], [0, nan, 1, 2, 3, 4], [5, 5, 1, 5, 5, 1]])
    made = router(sigmoid, 6, 4, normalised=False).load()
    chosen = made.chosen(logits)[1]
    assert chosen.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3], [1, 5, 4, 3], [0, 1, 3, 4]]


def test_no_row() -> None:
    made = router(softmax, 8, 2)
    weights, chosen = made.load().chosen(torch.empty(0, 8))
    assert weights.shape == chosen.shape == (0, 2)
    assert made.backward(weights, torch.empty(0, 8))[0].shape == (0, 8)
    order, ends, counts = made.load().sorted_pairs(chosen, 8)
    assert order.shape == (0,) and not ends.any() and not counts.any()


@pytest.mark.parametrize("pairs, columns", [(1, 1), (7, 4), (1500, 5)])
def test_pairs_are_sorted_by_choice_and_stay_in_order(pairs: int, columns: int) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(columns, (pairs, 1)) // 2 * 2  # odd choices stay empty
    order, ends, counts = router(softmax, columns, 1).load().sorted_pairs(numbers, columns)
    assert torch.equal(order, torch.sort(numbers.flatten(), stable=True).indices)
    assert torch.equal(counts.long(), torch.bincount(numbers.flatten(), minlength=columns))
    assert torch.equal(ends.long(), counts.long().cumsum(0))


def test_what_it_cannot_hold_is_refused() -> None:
    with pytest.raises(GatecError, match="at most 16 choices out of at most 512 columns"):
        router(softmax, 32, 17)
    with pytest.raises(GatecError, match="found 1 out of 513"):
        router(softmax, 513, 1)
    with pytest.raises(TypeError, match="generated for 8 columns"):
        router(softmax, 8, 1).forward(torch.empty(2, 9))


class Softmax(nn.Module):
    def forward(self, logits):
        weights, chosen = torch.softmax(logits, -1, dtype=torch.float).topk(3, -1)
        return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), chosen


class Moved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.linspace(-1, 1, 11))

    def forward(self, logits):
        scores = logits.float().sigmoid()
        chosen = (scores + self.bias).topk(3)[1]
        return scores.gather(-1, chosen) * 2.5, chosen


class Grouped(nn.Module):
    def forward(self, logits):
        scores = logits.float().sigmoid()
        worth = scores.view(-1, 4, 3).topk(2, dim=-1)[0].sum(-1)
        mask = torch.zeros_like(worth).scatter(1, worth.topk(2)[1], 1)
        mask = mask.unsqueeze(-1).expand(-1, 4, 3).reshape(-1, 12)
        chosen = scores.masked_fill(~mask.bool(), float("-inf")).topk(5)[1]
        return scores.gather(-1, chosen), chosen


@pytest.mark.parametrize(
    "columns, groups, choices", [(12, Groups(4, 2), 5), (8, Groups(2, 1, 1), 4), (16, Groups(16, 3, 1, 0.0), 5)]
)
def test_columns_of_the_best_groups_only(columns, groups, choices) -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(21, columns), torch.rand(columns)
    weights, chosen = router(sigmoid, columns, choices, biased=True, groups=groups).load().chosen(logits, bias)
    scores = torch.sigmoid(logits)
    key = (scores + bias).unflatten(-1, (groups.count, -1))
    best = key.topk(groups.best, -1).values.sum(-1).topk(groups.kept, -1).indices
    closed = torch.ones(21, groups.count, dtype=torch.bool).scatter(-1, best, False)
    wanted = key.masked_fill(closed.unsqueeze(-1), groups.fill).flatten(-2).topk(choices, -1).indices
    real = groups.kept * columns // groups.count  # behind them, all that is left has one value, in any order
    assert torch.equal(chosen[:, :real], wanted[:, :real])
    torch.testing.assert_close(weights * scores.gather(-1, chosen).sum(-1, keepdim=True), scores.gather(-1, chosen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", [Softmax(), Moved(), Grouped()], ids=["softmax", "moved", "grouped"])
def test_every_way_passes_the_verification_of_a_device(model: nn.Module, dtype: torch.dtype) -> None:
    logits = torch.randn(13, 12 if isinstance(model, Grouped) else 11).to(dtype)
    graph = trace(model, type(model).forward, Call((logits,), {})).graph
    (region,) = routings(graph, model)
    values = [logits, *(torch.randn(v.shape) for v in region.examples[1:])]
    sides = lower.sides(made_for(region), region.function())
    assert [s.name for s in sides] == ["forward", "backward"]
    for here in sides:
        forms = tuple(map(Form.of, here.operands(values)))
        for way in here.ways.values():
            verified(pickle.loads(pickle.dumps(Trial(way, here.eager, here.exact, forms, "cpu"))))


def test_a_wrong_choice_does_not_pass() -> None:
    model, logits = Softmax(), torch.randn(13, 11)
    (region,) = routings(trace(model, Softmax.forward, Call((logits,), {})).graph, model)
    here, _ = lower.sides(made_for(region), region.function())

    def shifted(logits):
        weights, chosen = here.ways["kernel"].way(logits)
        return weights, logits.softmax(-1).gather(-1, (chosen + 1) % 11)

    with pytest.raises(Exception, match="result 1"):
        verified(Trial(shifted, here.eager, here.exact, (Form.of(logits),), "cpu"))
