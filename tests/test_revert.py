"""revert(): the user's model again, to the bit; and checkpoints of that model, loaded into the rewritten one."""

import copy

import pytest
import torch
from sampled import swept
from test_gates import PUT, built, converted, pickled, same, state
from torch import nn

import gatec
from gatec.zoo import load

X = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(5, 8)
ALL = "moe(experts=4,top_k=4)"


def mlp(seed=0, width=16):
    torch.manual_seed(seed)
    layers = nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(width, 8)).double()


def moved(model):
    """As after training: every weight somewhere else, in a way that does not ask where it stands."""
    for p in model.parameters():
        p.data.mul_(2).add_(0.25)
    return model


@pytest.mark.parametrize("gate, case", PUT)
def test_reverted_is_the_model_to_the_bit(gate, case):
    model, inputs = built(case)
    before = state(model)
    rewritten = converted(gate, case, model, inputs)
    given = state(rewritten)
    try:
        back = gatec.revert(rewritten)
    except gatec.GatecError as e:
        assert f"as {gate.name} cannot" in str(e)
    else:
        assert same(state(back), before)
        assert all(torch.equal(a, b) for a, b in zip(outputs(back, inputs), outputs(model, inputs), strict=True))
    assert same(state(rewritten), given)


def outputs(model, inputs):
    with torch.no_grad():
        found = model(*inputs)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("spec, passes", [
    ("transformers:gpt2", f"glu,{ALL}"), ("transformers:opt", f"residual,wrap,{ALL}"),
    *map(swept, [("transformers:llama", f"skip,{ALL}"), ("transformers:phi3", f"attention,{ALL}")]),
])  # fmt: skip
def test_the_models_of_other_people(spec, passes):
    model = load(spec)
    before = state(model)
    assert same(state(gatec.revert(gatec.convert(model, passes))), before)


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, lambda m: gatec.fuse(m, X, everywhere=True)],
                         ids=["copied", "pickled", "fused"])  # fmt: skip
def test_after_training_the_weights_are_in_their_old_order(way):
    model = mlp()
    trained = moved(way(gatec.convert(model, "moe", experts=4, top_k=2, inputs=X)))
    back = gatec.revert(trained)
    assert same(state(back), state(moved(model)))
    assert not hasattr(back, "_gatec_history") and not back._load_state_dict_pre_hooks


def test_a_model_from_disk(tmp_path):
    model = mlp()
    gatec.save(gatec.convert(model, "moe", experts=4, top_k=2, inputs=X), tmp_path)
    assert same(state(gatec.revert(gatec.load(tmp_path, mlp(7), inputs=X))), state(model))


def test_what_cannot_be_reverted_is_refused_in_words():
    with pytest.raises(gatec.GatecError, match=r"^gatec: a model that gatec has rewritten\n  found Sequential\n"):
        gatec.revert(mlp())
    gated = gatec.convert(mlp(), "prune", inputs=X)
    for p in gatec.gate_parameters(gated):
        p.data[::2] = 0
    with pytest.raises(
        gatec.GatecError, match="found compact has removed hidden units\n  where 2\n  try   keep the model"
    ):
        gatec.revert(gatec.compact(gated, inputs=X))

    def hidden(x: torch.Tensor, up: gatec.Linear, act: gatec.Activation, down: gatec.Linear):
        return down(gatec.here(act(up(x))))

    def after(site, here, up):
        return here * site.add("scale", lambda: nn.Parameter(torch.ones((), dtype=torch.float64)), near=up)

    def birth(site, up, down):
        with torch.no_grad():
            up.weight.copy_(up.weight)

    def refuse(site):
        site.refuse("it was never meant to be")

    for how, words in (({}, "its birth may have changed weights, and it does not say how"),
                       ({"moved": refuse}, "it was never meant to be")):  # fmt: skip
        odd = gatec.convert(mlp(), gatec.Gate(before=(hidden,), after=after, birth=birth, **how), inputs=X)
        with pytest.raises(
            gatec.GatecError, match=f"as test_revert cannot\n  found {words}.*\n  where 6\n  try   keep"
        ):
            gatec.revert(odd)


def test_weights_that_were_shared_since_are_not_moved():
    model = gatec.convert(mlp(), "moe", experts=4, top_k=2, inputs=X)
    model.append(nn.Linear(8, 16))
    model[-1].weight = model[0].weight
    with pytest.raises(gatec.GatecError, match=r"as moe cannot\n  found 0.weight is shared with 7.weight\n  where 2\n"):
        gatec.revert(model)


# -- dense checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [ALL, f"glu,{ALL}", "prune,glu", "skip,residual"])
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, pickled], ids=["as it is", "copied", "pickled"])
def test_a_dense_checkpoint_loads_into_the_converted_model(passes, way):
    class Block(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.mlp = mlp(seed)

        def forward(self, x):
            return x + self.mlp(x)

    globals()["Block"], Block.__qualname__ = Block, "Block"
    dense = nn.Sequential(Block(8), Block(9))
    model = way(gatec.convert(nn.Sequential(Block(1), Block(2)), passes, inputs=X))
    gates = {n: v.clone() for n, v in model.state_dict().items() if n not in dense.state_dict()}
    given = {n: v.clone() for n, v in dense.state_dict().items()}
    taken = model.load_state_dict(given)
    assert not taken.missing_keys and not taken.unexpected_keys
    torch.testing.assert_close(model(X), dense(X), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in gates.items())
    assert list(given) == list(dense.state_dict())
    assert all(torch.equal(v, dense.state_dict()[n]) for n, v in given.items())


@pytest.mark.parametrize("assign", [False, True])
def test_of_a_part_of_the_model_too(assign):
    model, other = gatec.convert(load("transformers:llama"), ALL), moved(load("transformers:llama"))
    mine, dense = model.model.layers[0].mlp, other.model.layers[0].mlp
    kept = model.model.layers[1].mlp.up_proj.weight.clone()
    mine.load_state_dict({n: v.clone() for n, v in dense.state_dict().items()}, assign=assign)
    x = torch.randn(2, 3, mine.gate_proj.in_features)
    torch.testing.assert_close(mine(x), dense(x))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, kept)


@pytest.mark.parametrize("spec", ["transformers:gpt2", "transformers:phi3", "transformers:opt"])
def test_a_dense_checkpoint_of_other_peoples_models(spec):
    model, dense = gatec.convert(load(spec), ALL), load(spec)
    for p in dense.parameters():
        p.data.mul_(1.5)
    model.load_state_dict(dense.state_dict())
    ids = torch.randint(5, 200, (2, 6))
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)


def test_its_own_checkpoint_is_loaded_as_it_is():
    model = gatec.convert(mlp(), "moe", experts=4, top_k=2, inputs=X)
    other = gatec.convert(mlp(5), "moe", experts=4, top_k=2, inputs=X)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in other.state_dict().items())


def test_a_checkpoint_of_another_size_is_refused_before_anything_is_loaded():
    model = gatec.convert(nn.Sequential(nn.Linear(8, 8).double(), mlp()), ALL, inputs=X)
    before = state(model)
    with pytest.raises(gatec.GatecError, match=r"^gatec: a state dict that fits the rewritten model\n"
                       r"  found \[24, 8\] for \[16, 8\]; nothing was loaded\n  where 1.0.weight\n  try "):  # fmt: skip
        model.load_state_dict(nn.Sequential(nn.Linear(8, 8).double(), mlp(width=24)).state_dict())
    assert same(state(model), before)
