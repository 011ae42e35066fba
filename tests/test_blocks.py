"""compact() for whole blocks: without those whose gate is closed, and equal to the gated model to the bit."""

# ruff: noqa: E501 - one case per line

import copy
import types

import pytest
import torch
from sampled import some
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.blocks.configs import _without
from gatec.capture import unit_of
from gatec.verify import distance
from gatec.zoo import load

X = torch.linspace(-2, 2, 32).reshape(4, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x)))


class Pair(Block):
    def forward(self, x):
        return super().forward(x), None


class Loop(nn.Module):
    def __init__(self, blocks=4):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Pair() for _ in range(blocks)]), nn.Linear(8, 8)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


class Named(nn.Module):
    """Blocks that are asked for by their names: none of them can leave its place."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({name: Pair() for name in ("first", "second", "third")})

    def forward(self, x):
        x = self.layers["first"](x)[0]
        x = self.layers["second"](x)[0]
        return self.layers["third"](x)[0]


class Counted(nn.Module):
    """A loop that counts its blocks, as models with a config do."""

    def __init__(self, config):
        super().__init__()
        self.config, self.n_layers = config, config.n_layers
        self.layers = nn.ModuleList([Pair() for _ in range(config.n_layers)])
        self.scales = [1.0] * config.n_layers

    def forward(self, x):
        for i in range(self.n_layers):
            x = self.layers[i](x)[0] * {"full": 1.0, "half": 1.0}[self.config.layer_types[i]]
        return x


def counted():
    return Counted(types.SimpleNamespace(n_layers=4, layer_types=["full", "half", "full", "half"], n_heads=4))


def row():
    return nn.Sequential(Block(), Block(), Block(), nn.Linear(8, 8))


KINDS = {"a row": row, "a loop": Loop, "a loop that counts": counted, "a dict": Named}
KIND = pytest.mark.parametrize("build", KINDS.values(), ids=[k.replace(" ", "-") for k in KINDS])


def gated(model, closed=(0, 2), inputs=X, passes="skip"):
    model = gatec.convert(model.eval(), passes, inputs=inputs)
    switches = [m.gate for m in model.modules() if unit_of(m) and "skip" in [r.name for r in unit_of(m).outer]]
    for i in closed:
        switches[i].data.zero_()
    return model


def verdicts(model):
    return {e.site: (e.verdict, e.why) for e in gatec.report(model).edits}


@KIND
def test_without_closed_blocks_it_is_the_same_to_the_bit(build):
    model = gated(build())
    before = {n: v.clone() for n, v in model.state_dict().items()}
    small = gatec.compact(model, inputs=X)
    for x in (X, X[:1], torch.cat([X, X])):
        assert torch.equal(small(x), model(x))
    assert gatec.gate_parameters(small) == [] and not any(unit_of(m) for m in small.modules())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in build().parameters())
    assert all(verdict == "put" and "drift 0.0e+00" in why for verdict, why in verdicts(small).values())
    assert list(model.state_dict()) == list(before) and all(
        torch.equal(v, before[n]) for n, v in model.state_dict().items()
    )


@KIND
def test_blocks_are_compacted_once_and_saved_without_pickle(build, tmp_path):
    model = gated(build())
    small = gatec.compact(model, inputs=X)
    again = gatec.load(gatec.save(small, tmp_path), build().eval(), inputs=X)
    assert torch.equal(again(X), model(X)) and list(again.state_dict()) == list(small.state_dict())
    twice = gatec.load(gatec.save(again, tmp_path / "twice"), build().eval(), inputs=X)
    assert torch.equal(twice(X), model(X))
    assert torch.equal(gatec.compact(small, inputs=X)(X), small(X))


@KIND
def test_what_is_left_can_be_gated_again_and_learns(build):
    small = gatec.compact(gated(build(), closed=(0,)), inputs=X)
    again = gated(small, closed=(0,))
    smaller = gatec.compact(again, inputs=X)
    assert torch.equal(smaller(X), again(X))
    smaller(X).square().sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_a_loop_counts_what_is_left():
    small = gatec.compact(gated(counted()), inputs=X)
    assert len(small.layers) == small.n_layers == small.config.n_layers == 2
    assert small.config.layer_types == ["half", "half"] and small.config.n_heads == 4


def test_a_block_whose_place_must_stay_hands_on_what_it_takes():
    small = gatec.compact(gated(Named()), inputs=X)
    assert verdicts(small)["layers.first"] == ("put", "the block hands on what it takes, drift 0.0e+00")
    assert next(iter(small.state_dict())) == "layers.second.up.weight" and small.layers["first"](X)[1] is None


def test_gates_of_both_kinds_at_once_and_saved(tmp_path):
    model = gated(Loop().double(), (0, 2), X.double(), "skip,prune")
    for block in model.layers:
        next(p for n, p in block.named_parameters() if n != "gate" and "gate" in n).data[::2] = 0
    small = gatec.compact(model, inputs=X.double())
    assert distance(small(X.double()), model(X.double())) <= 1e-12
    assert [b.up.out_features for b in small.layers] == [8, 8]
    again = gatec.load(gatec.save(small, tmp_path), Loop().double().eval(), inputs=X.double())
    assert torch.equal(again(X.double()), small(X.double()))
    more = gated(small, (1,), X.double(), "skip,glu")
    less = gatec.compact(more, inputs=X.double())
    assert torch.equal(less(X.double()), more(X.double()))
    again = gatec.load(gatec.save(less, tmp_path), Loop().double().eval(), inputs=X.double())
    assert torch.equal(again(X.double()), less(X.double()))


def test_soft_gates_fold_before_or_after():
    model = gated(row(), passes="skip,residual")
    for name, p in model.named_parameters():
        if name.endswith("scale"):
            p.data.fill_(0.3)
    small = gatec.merge(gatec.compact(model, inputs=X), inputs=X)
    assert distance(small(X), model(X)) <= 1e-6 and not any(unit_of(m) for m in small.modules())


def test_a_removed_block_does_not_come_back():
    small = gatec.compact(gated(Loop()), inputs=X)
    with pytest.raises(
        gatec.GatecError,
        match=r"^gatec: a model with all its blocks\n  found compact has removed blocks\n  where layers.0\n",
    ):
        gatec.revert(small)


def test_a_saved_model_wants_all_blocks_to_begin_with(tmp_path):
    gatec.save(gatec.compact(gated(Loop()), inputs=X), tmp_path)
    words = r"^gatec: the blocks of Loop that were removed or shared\n  found .*\n  try   load into a fresh model of the configuration from before gatec.compact$"
    with pytest.raises(gatec.GatecError, match=words):
        gatec.load(tmp_path, Loop(2), inputs=X)


# -- what is left, in words ----------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Pair(), Pair()])
        self.other = nn.ModuleList([self.layers[0]])

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return x


class Numbered(Loop):
    """Blocks that know numbers which are not those of their places."""

    def __init__(self):
        super().__init__()
        for number, layer in zip((3, 1, 7, 5), self.layers, strict=True):
            layer.layer_idx = number


class Biased(nn.Module):
    """The first block also gives what the others need."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Giving() for _ in range(3)])

    def forward(self, x):
        bias = None
        for layer in self.layers:
            x, bias = layer(x, bias)
        return x


class Giving(Block):
    def forward(self, x, bias=None):
        bias = self.down.bias.sum() if bias is None else bias
        return super().forward(x) + bias, bias


class Indexed(nn.Module):
    """A loop that a captured forward unrolls, with a gate of its own around it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Pair(), Pair(), Pair()])
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)[0]
        return x + self.down(F.gelu(self.up(x)))


def hooked():
    model = Loop()
    model.layers[0].register_forward_hook(lambda *_: None)
    return model


LEFT = {
    "shared": (Shared, (0,), "skip", "it is also the block at other.0"),
    "other numbers": (
        Numbered,
        (0,),
        "skip",
        "layers.*.layer_idx is no place in layers; and the layers below layers are numbered by their place in it, for their cache",
    ),
    "gives more": (Biased, (0,), "skip", "the result would differ from the gated model by"),
    "gives more, and its place stays": (
        Biased,
        (0,),
        "skip",
        "; and its caller takes more from it than one tensor: Tensor",
    ),
    "hooks": (hooked, (0,), "skip", "hooks of its own run when it is called"),
}


@pytest.mark.parametrize("build, closed, passes, words", LEFT.values(), ids=[k.replace(" ", "-") for k in LEFT])
def test_what_cannot_be_removed_is_left_with_the_reason(build, closed, passes, words):
    model = gated(build(), closed, passes=passes)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    try:
        small = gatec.compact(model, inputs=X)
    except gatec.GatecError as e:
        assert str(e).startswith("gatec: a unit that can be compacted\n  found layers.0: ") and words in str(e)
    else:
        assert verdicts(small)["layers.0"][0] == "left" and words in verdicts(small)["layers.0"][1]
        assert torch.equal(small(X), model(X))
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_a_gate_around_the_chain_keeps_every_place():
    model = gated(Indexed(), (0,), passes="skip,glu")
    small = gatec.compact(model, inputs=X)
    assert verdicts(small)["layers.0"] == ("put", "the block hands on what it takes, drift 0.0e+00")
    assert torch.equal(small(X), model(X))


def test_two_gates_around_one_block():
    model = gated(row(), (0,), passes="skip,wrap")
    small = gatec.compact(model, inputs=X)
    assert torch.equal(small(X), model(X))


def test_a_chain_changed_by_hand_is_compacted_as_it_is():
    model = gated(Loop(), (0, 2))
    model.layers = model.layers[1:]
    small = gatec.compact(model, inputs=X)
    assert len(small.layers) == 2 and torch.equal(small(X), model(X))
    model.layers[1].down = nn.Linear(16, 8)
    assert torch.equal(gatec.compact(model, inputs=X)(X), model(X))


def test_a_chain_that_is_closed_whole_keeps_a_place():
    model = gated(Loop(), (0, 1, 2, 3))
    small = gatec.compact(model, inputs=X)
    assert torch.equal(small(X), model(X)) and len(small.layers) == 1
    assert sum(p.numel() for p in small.parameters()) == 72


def test_a_decoder_keeps_one_block_with_its_cache():
    model = gated(load("transformers:llama?num_hidden_layers=3"), (0, 1, 2), None)
    small = gatec.compact(model)
    words = "every block of model.layers is closed, and nothing would be left: open one of them; and the layers below"
    assert verdicts(small)["model.layers.0"][0] == "left" and verdicts(small)["model.layers.0"][1].startswith(words)
    assert len(gatec.gate_parameters(small)) == len(small.model.layers) == small.config.num_hidden_layers == 1


def test_dropout_that_is_on_is_no_obstacle():
    model = gatec.convert(load("transformers:gpt2?n_layer=3").train(), "skip,prune")
    model.transformer.h[1].gate.data.zero_()
    model.transformer.wte.eval()
    small = gatec.compact(model)
    assert verdicts(small)["transformer.h.1"] == ("put", "the block is removed, drift 0.0e+00")
    assert gatec.report(small).drift <= 1e-5
    assert (
        small.training and all(m.training for m in small.transformer.h.modules()) and not small.transformer.wte.training
    )
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(small.eval()(ids).logits, model.eval()(ids).logits)


def test_an_open_model_is_the_plain_model():
    small = gatec.compact(gated(Loop(), ()), inputs=X)
    assert set(verdicts(small).values()) == {("put", "open: the plain block again, drift 0.0e+00")}
    with pytest.raises(gatec.GatecError, match=r"^gatec: a model that gatec has rewritten\n"):
        gatec.save(small, "nowhere")


# -- configs -------------------------------------------------------------------------------------------------------

CONFIGS = [
    ({"layer_types": ["a", "b", "c", "d"]}, {"layer_types": ["b", "d"]}),
    ({"no_rope_layers": [1, 1, 0, 0]}, {"no_rope_layers": [1, 0]}),
    ({"mlp_only_layers": [0, 3]}, {"mlp_only_layers": [1]}),
    ({"moe_layers": [0, 1, 2, 3]}, {"moe_layers": [0, 1]}),
    (
        {"stage_names": ["stem", "a", "b", "c", "d"], "_out_indices": [2, 4], "_out_features": ["b", "d"]},
        {"stage_names": ["stem", "a", "b"], "_out_indices": [1, 2], "_out_features": ["a", "b"]},
    ),
    ({"cross_attention_layers": (1, 2)}, {"cross_attention_layers": (0,)}),
    ({"first_k_dense_replace": 3}, {"first_k_dense_replace": 1}),
    ({"kernel_sizes": [3, 3, 5, 5]}, {"kernel_sizes": [3, 3, 5, 5]}),
    ({"layer_types": None}, {"layer_types": None}),
]


@pytest.mark.parametrize("fields, wanted", CONFIGS)
def test_lists_of_a_config_follow(fields, wanted):
    fields = {"num_layers": 4, **fields}
    assert fields | _without(fields, ("num_layers", None), 4, [0, 2]) == {"num_layers": 2, **wanted}


def test_a_list_of_depths():
    assert _without({"depths": [2, 4, 6]}, ("depths", 1), 4, [0]) == {"depths": [2, 3, 6]}


# -- other people's models -----------------------------------------------------------------------------------------

SMALL = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
DECODERS = ["llama", "gpt2", "qwen3", "smollm3", "gpt_neox", "mamba"]


@pytest.mark.parametrize("kind", some(DECODERS, of=2, at=1))
def test_decoders_generate_and_go_through_save_pretrained(kind, tmp_path):
    count = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    model = gated(load(f"transformers:{kind}?{count}=4"), (0, 2), None)
    small = gatec.compact(model)
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(small(ids).logits, model(ids).logits)
    assert torch.equal(small.generate(ids, **SMALL), model.generate(ids, **SMALL))
    assert small.config.num_hidden_layers == 2 and type(small) is type(load(f"transformers:{kind}"))
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, small(ids).logits)
    assert torch.equal(again.generate(ids, **SMALL), small.generate(ids, **SMALL))


def test_an_encoder_and_its_decoder_are_counted_apart(tmp_path):
    base = load("transformers:bart?encoder_layers=3,decoder_layers=3")
    switched = gated(base, (0, 1, 4), None)
    small = gatec.compact(switched)
    assert (small.config.encoder_layers, small.config.decoder_layers) == (1, 2)
    ids = torch.randint(5, 200, (2, 6))
    assert torch.equal(small.generate(ids, **SMALL), switched.generate(ids, **SMALL))
    small.save_pretrained(tmp_path)
    assert torch.equal(type(small).from_pretrained(tmp_path)(ids).logits, small(ids).logits)


def test_types_of_layers_by_turns_are_kept_with_their_layers(tmp_path):
    model = gated(load("transformers:gemma3_text?num_hidden_layers=7"), (0, 2, 6), None)
    small = gatec.compact(model)
    kept = [t for i, t in enumerate(model.config.layer_types) if i not in (0, 2, 6)]
    assert small.config.layer_types == kept and len(kept) == 4
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2, 3]


UNSAID = {
    "a first layer of its own kind": "transformers:modernbert?num_hidden_layers=3",
    "scales by the number of a layer": "transformers:gpt2?n_layer=3,scale_attn_by_inverse_layer_idx=True",
    "windows by turns": "transformers:swin?depths=(2,2),num_heads=(3,6),embed_dim=24",
}


@pytest.mark.parametrize("spec", UNSAID.values(), ids=[k.replace(" ", "-") for k in UNSAID])
def test_a_config_that_cannot_say_it_is_told(spec, tmp_path):
    base = load(spec)
    model = gated(base, (0,), None)
    small = gatec.compact(model)
    said = [why for _, why in verdicts(small).values() if "removed" in why]
    assert said == [
        "the block is removed, drift 0.0e+00; its config does not say so: gatec.save keeps this model, save_pretrained would not"
    ]
    again = gatec.load(gatec.save(small, tmp_path), copy.deepcopy(base))
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in small.state_dict().items())


def test_position_bias_that_the_first_block_makes_is_kept():
    small = gatec.compact(gated(load("transformers:t5?num_layers=3,num_decoder_layers=3"), (0, 1, 4), None))
    found = verdicts(small)
    assert found["encoder.block.0"][0] == "left" and "would differ" in found["encoder.block.0"][1]
    assert found["encoder.block.1"][0] == found["decoder.block.1"][0] == "put"
    assert small.config.num_layers == small.config.num_decoder_layers == 2


def test_types_of_caches_that_a_config_works_out_by_turns():
    model = gated(load("transformers:jamba?num_hidden_layers=8"), (0, 6), None)
    found = verdicts(gatec.compact(model))
    assert found["model.layers.0"][0] == "left" and "without it the model raises" in found["model.layers.0"][1]
    assert found["model.layers.6"][0] == "put"


@pytest.mark.parametrize(
    "spec", ["transformers:dinov2?num_hidden_layers=3", "transformers:llama4_text?num_hidden_layers=4"]
)
def test_configs_with_more_to_say(spec, tmp_path):
    small = gatec.compact(gated(load(spec), (0, 2), None))
    assert {why for _, why in verdicts(small).values()} == {
        "the block is removed, drift 0.0e+00",
        "open: the plain block again, drift 0.0e+00",
    }
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in small.state_dict().items())


def test_a_network_of_images():
    model = gated(load("timm:resnet18"), (0, 4), None)
    small = gatec.compact(model)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(small(x), model(x)) and [len(getattr(small, f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 2, 1]


def test_a_shorter_model_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    small = gatec.compact(gated(Loop()), inputs=X)
    exported = gatec.export(small, tmp_path / "small.onnx", inputs=X)
    assert exported is not None and (tmp_path / "small.onnx").is_file()


# -- shared weights ------------------------------------------------------------------------------------------------


class Normed(Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def normed():
    return nn.Sequential(*(Normed() for _ in range(5)), nn.Linear(8, 8)).eval()


def test_neighbours_share_weights_and_keep_their_norms():
    model = normed()
    small = gatec.share_blocks(model, 2, inputs=X)
    assert small[1].up.weight is small[0].up.weight and small[3].down.bias is small[2].down.bias
    assert small[1].norm.weight is not small[0].norm.weight and small[4].up.weight is not small[3].up.weight
    wanted = copy.deepcopy(model)
    for child in (1, 3):
        for name in ("up", "down"):
            getattr(wanted[child], name).load_state_dict(getattr(wanted[child - 1], name).state_dict())
    assert torch.equal(small(X), wanted(X))
    assert gatec.report(small).drift == distance(small(X), model(X)) > 0
    assert verdicts(small) == {
        str(i): ("put", f"computes with the weights of {i - 1}: another function") for i in (1, 3)
    }
    assert model[1].up.weight is not model[0].up.weight


def test_shared_weights_are_saved_once_and_go_with_their_blocks(tmp_path):
    small = gatec.share_blocks(normed(), 3, inputs=X)
    again = gatec.load(gatec.save(small, tmp_path), normed(), inputs=X)
    assert torch.equal(again(X), small(X)) and again[2].up.weight is again[0].up.weight
    model = gated(small, (0, 4))
    less = gatec.compact(model, inputs=X)
    assert torch.equal(less(X), model(X)) and len(less) == 4
    again = gatec.load(gatec.save(less, tmp_path), normed(), inputs=X)
    assert torch.equal(again(X), less(X)) and again[1].up.weight is again[0].up.weight


def test_shared_weights_learn_together():
    small = gatec.share_blocks(normed(), 5, inputs=X)
    small(X).square().sum().backward()
    assert small[0].up.weight.grad is small[4].up.weight.grad
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in normed().parameters()) / 2


def test_what_cannot_share_is_told():
    wide = normed()
    wide[1].up, wide[1].down = nn.Linear(8, 4), nn.Linear(4, 8)
    small = gatec.share_blocks(wide, 2, inputs=X)
    assert verdicts(small)["1"] == ("left", "1 has not the weights that 0 has") and verdicts(small)["3"][0] == "put"
    with pytest.raises(gatec.GatecError, match=r"^gatec: groups of 2 blocks or more\n  found 1$"):
        gatec.share_blocks(wide, 1, inputs=X)
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: blocks that can share weights\n  found 1: 1 has not the weights that 0 has$"
    ):
        gatec.share_blocks(wide, 2, inputs=X, only="[01]")
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: blocks that can share weights\n  found none beside each other in Linear$"
    ):
        gatec.share_blocks(nn.Linear(8, 8), inputs=X)


def fitted(tail, *args, rate=1e-2, **kwargs):
    """The distance before and after a few steps."""
    optimizer, losses = torch.optim.Adam(tail.parameters(), rate), []
    for _ in range(30):
        losses.append(float(tail(*args, **kwargs).detach()))
        tail(*args, **kwargs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1]


def test_the_tail_is_drawn_to_the_teacher():
    model = normed()
    small = gatec.share_blocks(model, 2, inputs=X)
    before, taught = copy.deepcopy(small.state_dict()), copy.deepcopy(model.state_dict())
    tail = gatec.Distillation(small, model)
    assert tail.blocks == ["2", "3"] and len(tail.parameters()) == 8
    first, last = fitted(tail, X)
    assert 0 < last < first / 3
    held = torch.linspace(-1, 1, X.numel()).reshape(X.shape)
    fresh = gatec.Distillation(gatec.share_blocks(model, 2, inputs=X), model)
    assert float(tail(held).detach()) < float(fresh(held).detach())
    assert small[3].up.weight is small[2].up.weight
    assert all(torch.equal(v, taught[n]) for n, v in model.state_dict().items())
    moved = {n.partition(".")[0] for n, v in small.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"2", "3"}
    assert not any(m._forward_hooks for m in (*small.modules(), *model.modules()))


def test_blocks_that_return_more_are_distilled():
    model = load("transformers:gpt2?num_hidden_layers=4")
    ids = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    tail = gatec.Distillation(gatec.share_blocks(model, 2), model.train())
    first, last = fitted(tail, input_ids=ids, rate=1e-3)
    assert tail.blocks == ["transformer.h.2", "transformer.h.3"] and last < first / 2 and model.training
    tail = gatec.Distillation(gatec.share_blocks(model, 2), model, blocks=["transformer.h.3"])
    assert tail(input_ids=ids) > 0


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.spare = normed(), normed()

    def forward(self, x):
        return self.layers(x)


def test_what_cannot_be_distilled_is_told():
    model = normed()
    small = gatec.share_blocks(model, 2, inputs=X)
    for words, call in {
        r"a model whose blocks share weights\n  found none in Sequential": lambda: gatec.Distillation(model, model),
        r"blocks that its teacher has\n  found no 2": lambda: gatec.Distillation(small, model[:2]),
        r"blocks that the model has\n  found none": lambda: gatec.Distillation(small, model, []),
        r"a teacher with weights of its own\n  found weights that the model has": lambda: gatec.Distillation(
            small, small
        ),
        r"blocks that the forward comes by\n  found no output of spare.0": lambda: gatec.Distillation(
            Two(), Two(), "spare.0"
        )(X),
    }.items():
        with pytest.raises(gatec.GatecError, match=words):
            call()


def test_channels_and_blocks_at_once_and_saved(tmp_path):
    x = X.double()
    model = gatec.prune(gated(normed().double(), (0, 2), x), inputs=x)
    torch.manual_seed(0)
    for gate in gatec.channel_gates(model).values():
        gate.weight.data.copy_(torch.rand_like(gate.weight))
    small = gatec.compact(model, inputs=x)
    assert distance(small(x), model(x)) <= 1e-12 and len(small) == 4
    again = gatec.load(gatec.save(small, tmp_path), normed().double(), inputs=x)
    assert torch.equal(again(x), small(x))
