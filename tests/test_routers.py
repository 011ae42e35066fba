"""A router is one op from the logits to the weights and the choice, in anybody's spelling, and is left alone where it is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec


def renormalised(x, bias):
    weights, chosen = x.softmax(-1).topk(3, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), chosen


def in_place(x, bias):
    weights, chosen = torch.topk(F.softmax(x.float(), dim=1), 3)
    weights /= weights.sum(-1, keepdim=True)
    return weights.to(x.dtype), chosen


def behind(x, bias):
    top = torch.topk(x, 3, dim=-1)
    return F.softmax(top.values, dim=-1), top.indices


def sigmoids(x, bias):
    top, chosen = x.topk(3)
    return torch.sigmoid(top), chosen


def plain(x, bias):
    weights, chosen = torch.softmax(x / 0.7, -1).topk(1)
    return weights, chosen


def moved(x, bias):
    scores = x.sigmoid()
    chosen = torch.topk(scores + bias, k=3, dim=-1)[1]
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5, chosen


def grouped(x, bias):
    scores = x.sigmoid()
    key = scores + bias
    worth = key.view(-1, 4, 2).topk(2, dim=-1)[0].sum(dim=-1)
    kept = torch.topk(worth, k=2, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(worth)
    mask.scatter_(1, kept, 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, 2).reshape(-1, 8)
    chosen = torch.topk(key.masked_fill(~mask.bool(), float("-inf")), k=3, dim=-1, sorted=False)[1]
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5, chosen


def grouped_by_the_best(x, bias):
    scores = x.softmax(dim=-1)
    worth = scores.view(-1, 4, 2).max(dim=-1).values
    mask = torch.zeros_like(worth).scatter(1, worth.topk(2)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, 2).reshape(-1, 8)
    weights, chosen = torch.topk(scores.masked_fill(~mask.bool(), 0.0), k=3, dim=-1)
    return weights, chosen


SPELLINGS = [renormalised, in_place, behind, sigmoids, plain, moved, grouped, grouped_by_the_best]


def smallest(x, bias):
    weights, chosen = x.softmax(-1).topk(3, largest=False)
    return weights, chosen


def over_tokens(x, bias):
    weights, chosen = x.softmax(-1).topk(3, dim=0)
    return weights.T, chosen.T


def values_only(x, bias):
    return x.softmax(-1).topk(3).values, bias


def beyond_the_groups(x, bias):
    """More columns than the best group has: the weights of the others are zero, whatever their scores."""
    scores = x.softmax(dim=-1)
    worth = scores.view(-1, 4, 2).max(dim=-1).values
    mask = torch.zeros_like(worth).scatter(1, worth.topk(1)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, 2).reshape(-1, 8)
    return torch.topk(scores.masked_fill(~mask.bool(), 0.0), k=3, dim=-1)


LEFT = [beyond_the_groups, smallest, over_tokens, values_only]


class Router(nn.Module):
    """Experts that one matrix holds, weighed by what a router says."""

    def __init__(self, route) -> None:
        super().__init__()
        self.route, self.logits = route, nn.Linear(8, 8)
        self.register_buffer("bias", torch.randn(8))
        self.experts = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        weights, chosen = self.route(self.logits(x), self.bias)
        return weights, chosen, (weights.unsqueeze(-1) * self.experts[chosen.long().clamp(0, 7)]).sum(-2)


def fused(route):
    torch.manual_seed(0)
    before = Router(route)
    return before, gatec.fuse(before, (torch.randn(5, 8),), everywhere=True)


def routed(model):
    return [name for name in gatec.kernels_of(model) if ".router_" in name and "_of_8" in name]


@pytest.mark.parametrize("route", SPELLINGS, ids=lambda f: f.__name__)
def test_weights_choices_and_gradients_are_those_of_the_model(route) -> None:
    before, after = fused(route)
    assert routed(after), gatec.kernels_of(after)
    for tokens in (5, 1, 11):
        x = torch.randn(tokens, 8)
        results = []
        for model in (before, after):
            leaf = x.clone().requires_grad_()
            weights, chosen, out = model(leaf)
            loss = (weights * torch.arange(weights.shape[-1])).sum() + out.square().sum()
            results.append([weights, chosen, out, *torch.autograd.grad(loss, [leaf, *model.parameters()])])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("route", LEFT, ids=lambda f: f.__name__)
def test_another_choice_is_left_as_it_is(route) -> None:
    torch.manual_seed(0)
    before, x = Left(route), torch.randn(7, 8)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert gatec.kernels_of(after) and not routed(after)
    torch.testing.assert_close(after(x)[0], before(x)[0])


class Left(nn.Module):
    """A gate, beside a choice of another kind."""

    def __init__(self, route) -> None:
        super().__init__()
        self.logits, self.route, self.up = nn.Linear(8, 8), route, nn.Linear(8, 3)
        self.register_buffer("bias", torch.randn(8))

    def forward(self, x):
        weights, chosen = self.route(self.logits(x), self.bias)
        return F.silu(self.up(x)) * self.up(x) * weights.sum(), chosen


def test_it_is_differentiated_twice_and_through_torch_func() -> None:
    before, after = fused(moved)
    x = torch.randn(4, 8)
    wanted, found = (torch.func.jacrev(lambda v, m=m: m(v)[2].square())(x) for m in (before, after))
    torch.testing.assert_close(found, wanted)
    penalties = []
    for model in (before, after):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(leaf)[2].square().sum(), leaf, create_graph=True)
        penalties.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(penalties[1], penalties[0])


def test_it_compiles_whole_and_travels() -> None:
    before, after = fused(renormalised)
    x = torch.randn(6, 8)
    traced = torch.compile(after, backend="aot_eager", fullgraph=True)
    for model in (traced, copy.deepcopy(after)):
        for mine, theirs in zip(model(x), before(x), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_an_empty_batch_has_no_choice() -> None:
    before, after = fused(moved)
    for mine, theirs in zip(after(torch.empty(0, 8)), before(torch.empty(0, 8)), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_routers_of_a_model_library(kind) -> None:
    transformers = pytest.importorskip("transformers")
    count = {
        "qwen3_moe": {"num_experts": 6}, "gpt_oss": {"num_local_experts": 6},
        "deepseek_v3": {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 0, "q_lora_rank": 8,
                        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4},
    }[kind]  # fmt: skip
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=16, intermediate_size=12, moe_intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=32, num_experts_per_tok=3, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1, **count,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    after = gatec.fuse(model, {"input_ids": torch.randint(32, (2, 5))}, everywhere=True)
    assert [name for name in gatec.kernels_of(after) if "router_" in name and name.endswith("_3_of_6")]
    ids = torch.randint(32, (3, 4))
    torch.testing.assert_close(after(input_ids=ids).logits, model(input_ids=ids).logits)
