"""Laws of upcycling inside any model, beyond those of every pass: exact at birth, old names, dense checkpoints load."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.match import Linear
from gatec.moe import ROUTERS, copies
from gatec.verify import distance
from gatec.widening import _outputs

torch.manual_seed(0)
X = torch.randn(5, 3, 8)


class Gated(nn.Module):
    def __init__(self, act=F.silu) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24, bias=False), nn.Linear(24, 8)
        self.act = act

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


class Interleaved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 48), nn.Linear(24, 8)

    def forward(self, x):
        both = self.up(x)
        return self.down(F.gelu(both[..., 0::2]) * both[..., 1::2])


class Transposed(nn.Module):
    """As GPT-2 keeps its weights: [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(8, 24)), nn.Parameter(torch.randn(24, 8))
        self.bias, self.last = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        hidden = torch.addmm(self.bias, x.reshape(-1, 8), self.up)
        return torch.addmm(self.last, F.relu(hidden), self.down).view(x.shape)


class Apart(nn.Module):
    """up in one module and down in another, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate, self.output = (
            nn.Sequential(nn.Linear(8, 24), nn.GELU()),
            nn.ModuleDict({"dense": nn.Linear(24, 8)}),
        )

    def forward(self, x):
        return x + self.output["dense"](self.intermediate(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 8))


FORMS = {"mlp": mlp, "gated": Gated, "relu squared": lambda: Gated(lambda h: F.relu(h).square()), "interleaved": Interleaved,
         "transposed": Transposed, "apart": Apart, "two": lambda: nn.Sequential(mlp(), Gated())}  # fmt: skip


def upcycled(model: nn.Module, **options) -> nn.Module:
    return gatec.convert(model, "upcycle", inputs=X.to(next(model.parameters()).dtype), **{"experts": 4, **options})


@pytest.mark.parametrize("top_k, shards", [(2, 1), (4, 1), (3, 8)])
@pytest.mark.parametrize("form", FORMS)
def test_exact_whatever_the_router_says(form, top_k, shards):
    dense = FORMS[form]().eval()
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        model = upcycled(dense.to(dtype), top_k=top_k, shards=shards)
        for scale in (0.0, 1.0, 30.0):
            for name, score in model.named_parameters():
                if name.endswith("score.weight"):
                    one = torch.randn(4, 8, dtype=dtype) * scale
                    score.data.copy_(one.repeat_interleave(shards, 0))
            if scale or shards == 1:  # equal scores are no copies of one shard
                assert distance(model(X.to(dtype)), dense(X.to(dtype))) <= bound


@pytest.mark.parametrize("form", FORMS)
def test_copies_lie_beside_each_other_under_the_old_names(form):
    dense = FORMS[form]()
    model = upcycled(dense, shards=2)
    before, after = dict(dense.named_parameters()), dict(model.named_parameters())
    assert [n for n in after if "router" not in n] == list(before)
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        assert linear.weight.shape == (linear.out_features, linear.in_features)
    grown = {n: after[n].numel() // p.numel() for n, p in before.items()}
    assert set(grown.values()) == {1, 4}
    assert all(grown[n] == 4 for n, p in before.items() if p.dim() == 2)


@pytest.mark.parametrize("router", [name for name, kind in ROUTERS.items() if kind.fixed])
def test_every_router_that_gives_all_tokens_as_many(router):
    dense = Gated().double().eval()
    for shards in (1, 3) if router != "noisy" else (1,):
        model = upcycled(dense, router=router, shards=shards, tasks=2)
        assert distance(model(X.double()), dense(X.double())) <= 1e-12
        assert distance(model.train()(X.double()), dense(X.double())) <= 1e-12


def test_only_what_goes_down_is_scaled_for_shards():
    dense = Gated()
    model = upcycled(dense, experts=2, shards=3)
    assert torch.equal(model.up.weight, dense.up.weight.repeat(2, 1))
    assert torch.equal(model.gate.bias, dense.gate.bias.repeat(2))
    assert torch.equal(model.down.weight, 3 * dense.down.weight.repeat(1, 2))
    assert torch.equal(model.down.bias, dense.down.bias)
    rows = model.router.score.weight.unflatten(0, (2, 3))
    assert torch.equal(rows, rows[:, :1].expand_as(rows)) and not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("form", FORMS)
def test_dense_checkpoints_still_load(form):
    dense, other = FORMS[form]().eval(), FORMS[form]().eval()
    model = upcycled(dense, shards=2)
    routers = {n: v.clone() for n, v in model.state_dict().items() if "router" in n}
    taken = {n: v.clone() for n, v in other.state_dict().items()}
    model.load_state_dict(taken)
    assert distance(model(X), other(X)) <= 1e-6
    assert all(torch.equal(model.state_dict()[n], v) for n, v in routers.items())
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in taken.items())
    again = copy.deepcopy(model)
    again.load_state_dict(dense.state_dict())
    assert distance(again(X), dense(X)) <= 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_reverted_while_copies_are_the_same(form):
    dense = FORMS[form]().eval()
    before = dense.state_dict()
    model = upcycled(dense, shards=2)
    back = gatec.revert(model)
    assert list(back.state_dict()) == list(before) and type(back) is type(dense)
    assert all(torch.equal(v, before[n]) for n, v in back.state_dict().items())
    assert all(m.weight.shape == (m.out_features, m.in_features) for m in back.modules() if isinstance(m, nn.Linear))
    with pytest.raises(gatec.GatecError, match=r"as upcycle cannot\n  found the copies in .* differ by now\n"):
        gatec.revert(upcycled(dense, noise=0.5))


def test_a_checkpoint_of_copies_without_its_router_is_not_whole():
    model = upcycled(mlp())
    state = model.state_dict()
    del state["0.router.score.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0.router.score.weight"):
        model.load_state_dict(state)


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_into_a_dense_model(form, tmp_path):
    model = upcycled(FORMS[form]().eval(), shards=2, noise=0.25)
    folder = gatec.save(model, tmp_path)
    found = gatec.load(folder, FORMS[form]().eval(), inputs=X)
    assert torch.equal(found(X), model(X))
    assert [(n, p.shape) for n, p in found.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]


def test_noise_draws_a_share_of_units_anew_the_same_for_the_same_seed():
    dense = Gated().eval()
    one, same, other = (upcycled(dense, noise=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one(X), same(X)) and not torch.equal(one(X), other(X))
    kept = (one.up.weight == dense.up.weight.repeat(4, 1)).all(1).unflatten(0, (4, 24))
    assert kept.sum(1).tolist() == [12] * 4 and not torch.equal(kept[0], kept[1])
    assert torch.equal(kept.flatten(), (one.down.weight == dense.down.weight.repeat(1, 4)).all(0))
    assert torch.equal(kept.flatten(), (one.gate.weight == dense.gate.weight.repeat(4, 1)).all(1))
    (edit,) = gatec.report(one).edits
    assert edit.drift > 1e-3 and "50% of the hidden units of every expert are drawn anew" in edit.note


def test_the_report_tells_the_weights():
    (edit,) = gatec.report(upcycled(mlp(), top_k=2)).edits
    assert edit.note.endswith("384 weights are 1,536, 768 of them for a token")


def test_copies_part_in_training():
    torch.manual_seed(0)
    model, target = upcycled(Gated().double()), torch.randn(5, 3, 8).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(X.double()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    experts = model.up.weight.unflatten(0, (4, 24))
    assert all(not torch.equal(experts[0], e) for e in experts[1:])


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 48), nn.Linear(24, 8)

    def forward(self, x):
        a, b = self.up(x).split(24, -1)
        return self.down(F.silu(a) * b)


WRONG = {
    "too many for a token": ({"experts": 2, "top_k": 3},
        r"^gatec: 1 <= top_k <= experts, and shards .*\n  found experts=2, top_k=3, shards=1\n"),
    "no shards": ({"shards": 0}, r"shards of at least 1\n  found experts=4, top_k=2, shards=0\n"),
    "shards that do not divide": ({"shards": 5},
        r"^gatec: shards that divide 24 hidden units\n  found shards=5\n  try   one of 1, 2, 3, 4, 6"),
    "noise above one": ({"noise": 2}, r"^gatec: noise as a share from 0 to 1\n  found noise=2\n"),
}  # fmt: skip


@pytest.mark.parametrize("options, words", WRONG.values(), ids=[w.replace(" ", "-") for w in WRONG])
def test_numbers_that_make_no_mixture(options, words):
    with pytest.raises(gatec.GatecError, match=words):
        upcycled(mlp(), **options)


@pytest.mark.parametrize("first", ["glu", "prune"])
def test_a_hidden_layer_with_another_gate_keeps_its_width(first):
    model = nn.Sequential(mlp(), nn.Tanh(), Gated()).eval()
    gated = gatec.convert(model, first, inputs=X, only="^0")
    both = gatec.convert(gated, "upcycle", inputs=X, experts=4)
    assert {e.site: e.verdict for e in gatec.report(both).edits}["2"] == "put"
    assert distance(both(X), gated(X)) <= 1e-6
    assert [p.shape for p in both[0].parameters()] == [p.shape for p in gated[0].parameters()]


def test_a_refusal_leaves_no_trace():
    model = Numbers()
    before = dict(model.named_parameters())
    for ask in (gatec.why, gatec.convert_):
        try:
            edits = ask(model, "upcycle", inputs=X)
        except gatec.GatecError as e:
            assert "its forward does not hold for a wider hidden layer" in str(e)
        else:
            assert [e.verdict for e in edits] == ["left"]
        assert all(p is before[n] for n, p in model.named_parameters()) and model.up.out_features == 48
        assert type(model) is Numbers


@pytest.mark.parametrize(
    "rows, others, copied, wide",
    [
        ((0, 4, 1), [(4, 8, 1)], [0, 1, 2, 3] * 2 + [4, 5, 6, 7] * 2, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((4, 8, 1), [(0, 4, 1)], [0, 1, 2, 3] * 2 + [4, 5, 6, 7] * 2, [8, 9, 10, 11, 12, 13, 14, 15]),
        ((1, 8, 2), [(0, 8, 2)], [0, 1, 2, 3, 4, 5, 6, 7] * 2, [1, 3, 5, 7, 9, 11, 13, 15]),
        ((2, 4, 1), [(5, 7, 1)], [0, 1, 2, 3, 2, 3, 4, 5, 6, 5, 6, 7], [2, 3, 4, 5]),
        ((5, 7, 1), [(2, 4, 1)], [0, 1, 2, 3, 2, 3, 4, 5, 6, 5, 6, 7], [7, 8, 9, 10]),
    ],
)
def test_rows_of_packed_layers(rows, others, copied, wide):
    spec, *more = (Linear("up", "up.weight", None, False, 8, r) for r in (rows, *others))
    slices, found = _outputs(spec, [spec, *more], 2)
    assert [i for start, stop in slices for i in range(start, stop)] == copied
    assert list(range(*found.rows)) == wide and found.width == len(copied)


def test_seeds_differ_by_place():
    one, same, other = (torch.randn(3, generator=copies.seeded(0, p)) for p in ("a", "a", "b"))
    assert torch.equal(one, same) and not torch.equal(one, other)
