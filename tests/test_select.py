"""select: gates on the rows of embeddings, annealed until they are open or shut; compact() takes the shut rows away."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import gatec
from gatec.capture import unit_of
from gatec.embeddings import Kept
from gatec.verify import distance
from gatec.zoo import load

IDS = torch.arange(24).reshape(4, 6) % 12


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(12, 8, **options), nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.table(ids).mean(-2))


def gated(model, shut=(1, 4, 5), hard=True):
    model = gatec.convert(model.eval(), "select", inputs=IDS)
    torch.manual_seed(0)
    for gate in gatec.gate_parameters(model):
        gate.data.add_(torch.rand_like(gate))
        gate.data[list(shut)] = -0.3
    gatec.anneal(model, math.inf if hard else 0.5)
    return model


def why(model):
    return [(e.verdict, e.why) for e in gatec.report(model).edits]


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"padding_idx": 4}, {"padding_idx": -1}, {"sparse": True}])
def test_without_shut_rows_it_is_the_same(options):
    model = gated(Words(**options))
    small = gatec.compact(model, inputs=IDS)
    assert torch.equal(small(IDS), model(IDS)) and not any(unit_of(m) for m in small.modules())
    padded = options.get("padding_idx") in (0, -1)
    assert small.table.weight.shape == (12 - 3 + 1 - padded, 8) == (small.table.num_embeddings, 8)
    assert not small.table.weight[-1].any() and isinstance(small.table, nn.Embedding)
    assert why(small) == [("put", "3 of 12 rows removed, drift 0.0e+00")]


def test_soft_gates_are_folded_and_no_row_goes():
    model = gated(Words(), hard=False)
    for small in (gatec.compact(model, inputs=IDS), gatec.merge(model, inputs=IDS)):
        assert distance(small(IDS), model(IDS)) <= 1e-6
        assert list(small.state_dict()) == list(Words().state_dict()) and type(small.table) is nn.Embedding


def test_the_row_of_zeros_does_not_learn():
    small = gatec.compact(gated(Words()), inputs=IDS)
    optimizer = torch.optim.SGD(small.parameters(), 0.5)
    before = small.table.weight.detach().clone()
    small(IDS).square().sum().backward()
    optimizer.step()
    assert not small.table.weight[-1].any() and not torch.equal(small.table.weight, before)


def test_every_row_shut_leaves_zeros():
    model = gated(Words(), shut=range(12))
    small = gatec.compact(model, inputs=IDS)
    assert torch.equal(small(IDS), model(IDS)) and small.table.num_embeddings == 1


def test_it_is_saved_and_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    small = gatec.compact(gated(Words()), inputs=IDS)
    again = gatec.load(gatec.save(small, tmp_path), Words().eval(), inputs=IDS)
    assert torch.equal(again(IDS), small(IDS)) and type(again.table) is Kept
    assert torch.equal(copy.deepcopy(again)(IDS), small(IDS))
    assert (gatec.export(small, tmp_path / "small.onnx", inputs=IDS), (tmp_path / "small.onnx").is_file())[1]
    with pytest.raises(
        gatec.GatecError, match=r"^gatec: the embeddings of Sequential that were compacted\n  found none at table\n"
    ):
        gatec.load(tmp_path, nn.Sequential(nn.Embedding(12, 8)), inputs=IDS)
    with pytest.raises(
        gatec.GatecError,
        match=r"^gatec: a model with all its embedding rows\n  found compact has removed embedding rows\n",
    ):
        gatec.revert(small)


def test_annealing():
    model = gatec.convert(Words().eval(), "select", inputs=IDS, start=0.1)
    before = model(IDS)
    selector = model.table.selector
    assert torch.equal(before, gatec.revert(model)(IDS)) and float(selector.tau) == 1
    assert gatec.anneal(model, 0.0) == 1 and gatec.anneal(model, 1.0) == 200
    assert torch.allclose(selector.factors, torch.full((12,), 1 / (1 / (1 + math.exp(-0.1)))), rtol=1e-6)
    gatec.anneal(model, math.inf)
    selector.mask.data[:6] = 0
    assert selector.factors[:6].eq(0).all() and selector.factors[6:].gt(1).all()
    model(IDS).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_annealing_says_what_it_wants():
    with pytest.raises(
        gatec.GatecError,
        match=r'^gatec: a model with gates to anneal\n  found none in Words\n  try   gatec.convert\(model, "select"\)$',
    ):
        gatec.anneal(Words(), 1.0)
    model = gatec.convert(Words(), "select", inputs=IDS)
    for bad in ({"progress": -1.0}, {"progress": math.nan}, {"progress": 1.0, "final": 1.0}):
        with pytest.raises(
            gatec.GatecError, match=r"^gatec: a progress of 0 or more, and a final temperature above 1\n  found "
        ):
            gatec.anneal(model, **bad)


def test_a_penalty_shuts_ids_that_say_nothing():
    """Half of the ids carry the target; the others are noise beside them."""
    torch.manual_seed(0)
    values = torch.randn(12)
    values[6:] = 0
    model = gatec.convert(nn.Sequential(nn.Embedding(12, 1), nn.Flatten()), "select", inputs=IDS)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(200):
        gatec.anneal(model, step / 200)
        ids = torch.randint(12, (64, 1))
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(ids), values[ids]) + gatec.losses(model, select=0.02)).backward()
        optimizer.step()
    gatec.anneal(model, math.inf)
    small = gatec.compact(model, inputs=IDS[:, :1])
    open_ = (small[0].places < small[0].num_embeddings - 1).tolist()
    assert sum(open_[:6]) >= 5 and not any(open_[6:])


class Scaled(nn.Embedding):
    def forward(self, input):
        return super().forward(input) * 2


def with_table(table):
    model = Words()
    model.table = table
    return model


def padded():
    model = Words(padding_idx=0)
    model.table.weight.data[0] = 1
    return model


def halved():
    model = Words()
    parametrize.register_parametrization(model.table, "weight", nn.Identity())
    return model


LEFT = {
    "rows that move": (lambda: Words(max_norm=1.0), "it rescales its rows while it runs (max_norm)"),
    "a padding row that is not zero": (
        padded,
        "its padding row, 0, is not zero, and it could not learn any more beside the row of zeros",
    ),
}


@pytest.mark.parametrize("build, words", LEFT.values(), ids=[k.replace(" ", "-") for k in LEFT])
def test_tables_that_stay_whole(build, words):
    model = gated(build())
    before = model(IDS)
    with pytest.raises(gatec.GatecError, match=r"^gatec: a unit that can be compacted") as caught:
        gatec.compact(model, inputs=IDS)
    assert words in str(caught.value) and torch.equal(model(IDS), before)


def test_a_table_with_a_forward_of_its_own_is_left_at_conversion():
    with pytest.raises(gatec.GatecError, match=r"found table: Scaled has a forward of its own"):
        gatec.convert(with_table(Scaled(12, 8)), "select", inputs=IDS)


def test_a_parametrized_table_is_left_at_conversion():
    with pytest.raises(gatec.GatecError, match=r"^gatec: a place for select in Words\n  found "):
        gatec.convert(halved(), "select", inputs=IDS)


def test_a_table_that_is_tied_to_the_head_stays_whole():
    model = gatec.convert(load("transformers:gpt2?tie_word_embeddings=True"), "select", only="wte")
    gatec.gate_parameters(model)[0].data[7:20] = -1
    gatec.anneal(model, math.inf)
    words = (
        r"found transformer.wte: transformer.wte.weight is shared with lm_head.weight, whose rows would be gone with it"
    )
    with pytest.raises(gatec.GatecError, match=words):
        gatec.compact(model)


def test_a_language_model_keeps_the_meaning_of_its_ids(tmp_path):
    base = load("transformers:llama?tie_word_embeddings=False")
    model = gatec.convert(base, "select", only="embed_tokens")
    gatec.gate_parameters(model)[0].data[100:] = -1
    gatec.anneal(model, math.inf)
    small = gatec.compact(model)
    ids = torch.randint(5, 512, (2, 6))
    assert torch.equal(small(ids).logits, model(ids).logits) and small.config.vocab_size == 512
    assert small.get_input_embeddings().weight.shape[0] == 101
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **options), model.generate(ids, **options))
    again = gatec.load(gatec.save(small, tmp_path), base)
    assert torch.equal(again(ids).logits, small(ids).logits)
