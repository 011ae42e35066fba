"""A mixture of experts is one region from the choice to the sum, whoever wrote it, and what is not quite one is left alone."""

import copy

import pytest
import torch
from sampled import some
from torch import nn
from torch.nn import functional as F

import gatec

SIZES = {
    "hidden_size": 16, "intermediate_size": 12, "moe_intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32, "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
    "olmoe": {"num_experts": 5},
    "deepseek_v3": {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 8,
                    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4},
}  # fmt: skip


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Biased(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 16)
        self.up = nn.Linear(8, 16)


def mixed(model: nn.Module, top_k: int = 2) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    return gatec.convert(model.eval(), f"moe(experts=4,top_k={top_k})", inputs=(x,)), x


def same(before: nn.Module, after: nn.Module, inputs: torch.Tensor) -> None:
    """Whether two modules give one result and the same gradients."""
    results = []
    for model in (before, after):
        leaf = inputs.clone().requires_grad_()
        out = model(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *model.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_one_op_computes_the_mixture_and_its_gradients(top_k: int) -> None:
    before, x = mixed(Gated(), top_k)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert sorted(gatec.kernels_of(after)) == [
        f"model.experts_{top_k}_of_4_router_softmax", f"router.router_softmax_{top_k}_of_4",
    ]  # fmt: skip
    for shape in ((2, 5, 8), (1, 8), (3, 1, 7, 8)):
        same(before, after, torch.randn(shape))


def test_biases_of_experts_are_part_of_it() -> None:
    before, x = mixed(Biased())
    after = gatec.fuse(before, (x,), everywhere=True)
    assert [name for name in gatec.kernels_of(after) if name.startswith("model.experts_2_of_4")]
    same(before, after, torch.randn(3, 4, 8))


def test_one_product_with_a_bias_and_one_without_keep_the_region_of_the_gate() -> None:
    half = Biased()
    half.up = nn.Linear(8, 16, bias=False)
    before, x = mixed(half)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert not any("experts" in name for name in gatec.kernels_of(after))
    torch.testing.assert_close(after(x), before(x))


# -- other people's ---------------------------------------------------------------------------------------------------


def language_model(kind: str, form: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **SIZES, **MODELS[kind], pad_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation=form).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def stepped(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    logits = model(input_ids=ids).logits
    return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, form", some([(k, f) for f in ("grouped_mm", "batched_mm") for k in MODELS], of=2))
def test_experts_of_a_model_library_are_found_by_what_they_compute(kind: str, form: str) -> None:
    before, ids = language_model(kind, form), torch.randint(32, (2, 5))
    after = gatec.fuse(before, {"input_ids": ids}, everywhere=True)
    assert [name for name in gatec.kernels_of(after) if ".experts_3_of_" in name], gatec.kernels_of(after)
    for sizes in ((2, 5), (1, 1), (3, 7)):
        ids = torch.randint(32, sizes)
        for mine, theirs in zip(stepped(after, ids), stepped(before, ids), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_loop_over_experts_says_why_it_is_no_region() -> None:
    before, ids = language_model("qwen3_moe", "eager"), torch.randint(32, (2, 5))
    after = gatec.fuse(before, {"input_ids": ids}, everywhere=True)
    assert not any("experts" in name for name in gatec.kernels_of(after))
    said = dict(gatec.report(after).missed)
    assert "depends on the values of a tensor (.nonzero)" in said["model.layers.0.mlp.experts"]


class Grouped(nn.Module):
    """Sorted pairs and grouped products, as plain PyTorch writes them; each option is another way to write a part."""

    def __init__(self, experts=5, fan=2, counts="histc", back="argsort", separate=True, act=F.silu, dropped=False):
        super().__init__()
        self.experts, self.fan, self.counts, self.back, self.act, self.dropped = (
            experts,
            fan,
            counts,
            back,
            act,
            dropped,
        )
        self.router = nn.Linear(8, experts)
        self.separate = separate
        width = 16 if separate else 32
        self.first = nn.Parameter(torch.randn(experts, 8, width) / 4)
        self.second = nn.Parameter(torch.randn(experts, 8, width) / 4) if separate else None
        self.down = nn.Parameter(torch.randn(experts, 16, 8) / 4)

    def forward(self, x):
        scale, chosen = self.router(x).softmax(-1).topk(self.fan)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        if self.counts == "one_hot":
            counts = F.one_hot(flat, self.experts).sum(0)
        else:
            counts = torch.histc(flat.float(), bins=self.experts, min=0, max=self.experts - 1)
        ends = counts.cumsum(0).to(torch.int32)
        rows = x[order // self.fan]
        if self.separate:
            a, b = (F.grouped_mm(rows, w, offs=ends) for w in (self.first, self.second))
        else:
            a, b = F.grouped_mm(rows, self.first, offs=ends).split([16, 16], dim=-1)
        hidden = self.act(a) * b
        if self.dropped:
            hidden = hidden * x.mean()
        out = F.grouped_mm(hidden, self.down, offs=ends) * scale.reshape(-1)[order][:, None]
        if self.back == "argsort":
            placed = out[order.argsort()]
        else:
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(order.shape[0], device=order.device)
            placed = out[inverse]
        return placed.reshape(-1, self.fan, x.shape[-1]).sum(1)


SPELLINGS = [{}, {"counts": "one_hot"}, {"back": "written"}, {"separate": False}, {"fan": 1}, {"fan": 5, "act": F.relu}]


@pytest.mark.parametrize("options", SPELLINGS, ids=lambda options: ", ".join(options) or "plain")
def test_plain_torch_in_several_spellings(options) -> None:
    torch.manual_seed(0)
    before, x = Grouped(**options), torch.randn(9, 8)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert any("experts" in name for name in gatec.kernels_of(after))
    same(before, after, torch.randn(14, 8))
    assert torch.equal(copy.deepcopy(after)(x), after(x))


def test_a_value_from_elsewhere_between_the_products_keeps_the_region_of_the_gate() -> None:
    torch.manual_seed(0)
    before, x = Grouped(dropped=True), torch.randn(9, 8)
    after = gatec.fuse(before, (x,), everywhere=True)
    assert gatec.kernels_of(after) and not any("experts" in name for name in gatec.kernels_of(after))
    same(before, after, torch.randn(14, 8))


def test_in_bfloat16_with_routing_weights_in_float32() -> None:
    torch.manual_seed(0)
    before, x = Grouped().bfloat16(), torch.randn(9, 8).bfloat16()
    before.router.float()
    before.router.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    after = gatec.fuse(before, (x,), everywhere=True)
    assert any("experts" in name for name in gatec.kernels_of(after))
    assert after(x).dtype == before(x).dtype == torch.float32
    torch.testing.assert_close(after(x), before(x), atol=1e-2, rtol=1e-2)
