"""Laws of gatec.upcycle: a dense model of transformers as a mixture of transformers, with the same logits and tokens."""

import copy

import pytest
import torch
from torch import nn

import gatec
from gatec.moe.families import FAMILIES
from gatec.verify import distance

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
DEFAULT = ("llama", "qwen3")
EACH = [pytest.param(f, id=f.dense, marks=() if f.dense in DEFAULT else pytest.mark.sweep) for f in FAMILIES]
SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
MORE = {"qwen3_5_text": {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                         "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "mistral": {"sliding_window": 8}, "cohere2": {"sliding_window": 8, "num_hidden_layers": 4},
        "granite": {"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0}}  # fmt: skip
TEXT = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(0))


def dense(kind="llama", **more):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **MORE.get(kind, {}), **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms are ones and biases zeros when they are new
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@torch.no_grad()
def logits(model, text=TEXT):
    return model(input_ids=text).logits


def written(model):
    return model.generate(TEXT, max_new_tokens=12, min_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", EACH)
def test_same_logits_and_tokens_and_a_plain_checkpoint(family, shards, tmp_path):
    model = dense(family.dense)
    mixture = gatec.upcycle(model, to=family.mixture, experts=4, top_k=2, shards=shards)
    assert type(mixture).__module__.startswith("transformers.") and mixture.config.model_type == family.mixture
    assert distance(logits(mixture), logits(model)) <= 1e-6
    assert torch.equal(written(mixture), written(model))
    mixture.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(mixture) and torch.equal(logits(again), logits(mixture))
    assert torch.equal(written(again), written(model))


@pytest.mark.parametrize("kind", DEFAULT)
def test_any_router_gives_the_same_logits(kind):
    model = dense(kind)
    mixture = gatec.upcycle(model, experts=4, top_k=2)
    for layer in mixture.model.layers:
        nn.init.normal_(layer.mlp.gate.weight, std=5.0)
    assert distance(logits(mixture), logits(model)) <= 1e-6


def test_config_and_flags_go_with_it():
    model = dense(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, tie_word_embeddings=True)
    model.generation_config.max_new_tokens = 5
    mixture = gatec.upcycle(model, experts=6, top_k=3, shards=2, router_aux_loss_coef=0.5, output_router_logits=True)
    config = mixture.config
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (12, 6, 24)
    assert config.rope_parameters == model.config.rope_parameters and config.router_aux_loss_coef == 0.5
    assert mixture.lm_head.weight is mixture.model.embed_tokens.weight and mixture.generation_config.max_new_tokens == 5
    assert not mixture.training and gatec.upcycle(model.train().bfloat16()).training
    loss = mixture.train()(input_ids=TEXT, labels=TEXT).loss
    loss.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in mixture.model.layers)


def test_the_model_and_random_state_are_left_alone():
    model, state = dense(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    one, same, other = (gatec.upcycle(model, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    routers = [m.model.layers[0].mlp.gate.weight for m in (one, same, other)]
    assert torch.equal(routers[0], routers[1]) and not torch.equal(routers[0], routers[2])
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_noise_and_the_report():
    model = dense()
    exact, noisy = gatec.upcycle(model, experts=4), gatec.upcycle(model, experts=4, noise=0.5)
    assert gatec.report(exact).drift <= 1e-6 < gatec.report(noisy).drift
    counts = [sum(p.numel() for p in m.model.layers[1].parameters()) for m in (model, exact)]
    edit = gatec.report(exact).edits[1]
    assert (edit.site, edit.verdict) == ("model.layers.1.mlp", "put")
    assert edit.why == f"4 copies, 2 experts per token, {counts[0]:,} parameters of the layer now {counts[1]:,}"
    experts = noisy.model.layers[0].mlp.experts
    assert not torch.equal(experts.down_proj[0], experts.down_proj[1])


def meta():
    with torch.device("meta"):
        return dense()


WRONG = {
    "another architecture": (lambda: dense("gpt2"), {},
        r"^gatec: a mixture of transformers .*\n  found gpt2\n  try   there are llama -> mixtral, "),
    "another mixture": (dense, {"to": "qwen3_moe"},
        r"^gatec: a mixture .*\n  found llama -> qwen3_moe\n  try   there are llama -> mixtral"),
    "no transformers": (lambda: nn.Linear(2, 2), {},
        r"^gatec: a causal language model of transformers\n  found Linear\n"),
    "no head": (lambda: dense().model, {}, r"^gatec: a causal language model of transformers\n  found LlamaModel\n"),
    "biases": (lambda: dense(attention_bias=True), {},
        r"^gatec: a model that mixtral can express\n  found attention_bias=True\n  where LlamaConfig$"),
    "MLP biases": (lambda: dense(mlp_bias=True), {},
        r"^gatec: a model that mixtral can express\n  found mlp_bias=True\n"),
    "a window in some layers": (lambda: dense("qwen3", use_sliding_window=True, max_window_layers=1, sliding_window=4), {},
        r"can express\n  found a sliding window in some layers"),
    "no renormalisation": (lambda: dense("qwen3"), {"norm_topk_prob": False},
        r"^gatec: norm_topk_prob=True, with which .*\n  found norm_topk_prob=False\n"),
    "experts by their config": (dense, {"num_local_experts": 3},
        r"^gatec: num_local_experts=8, with which .*\n  found num_local_experts=3\n"),
    "an unknown field": (dense, {"colour": 3}, r"^gatec: fields of the config of mixtral\n  found colour$"),
    "too many for a token": (dense, {"experts": 2, "top_k": 3},
        r"^gatec: 1 <= top_k <= experts, .*\n  found experts=2, top_k=3, shards=1\n"),
    "shards that do not divide": (dense, {"shards": 5},
        r"^gatec: shards that divide 48 hidden units\n  found shards=5\n"),
    "no weights": (meta, {},
        r"^gatec: weights to copy\n  found model.embed_tokens.weight is on the meta device\n  try   load the checkpoint first$"),
    "rewritten": (lambda: gatec.convert(dense(), "prune"), {},
        r"^gatec: a model as transformers built it\n  found .* was rewritten by gatec\n"),
    "rope that differs": (lambda: other_rope(dense()), {},
        r"^gatec: MixtralForCausalLM with the logits of LlamaForCausalLM\n  found moved by "),
}  # fmt: skip


def other_rope(model):
    """A model that computes something else than its config says."""
    model.model.rotary_emb.inv_freq.mul_(0.5)
    return model


@pytest.mark.parametrize("build, options, words", WRONG.values(), ids=[w.replace(" ", "-") for w in WRONG])
def test_what_no_mixture_expresses_is_refused_in_words(build, options, words):
    with pytest.raises(gatec.GatecError, match=words):
        gatec.upcycle(build(), **options)
