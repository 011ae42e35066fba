"""gatec.calibrate: routers learn what their experts give, the same way every time, and resume where they were stopped."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.moe import fitting, streaming
from gatec.moe.blocks import Row
from gatec.moe.dealing import balanced, dealt, sample
from gatec.moe.fitted import Fit
from gatec.moe.standin import StandIn, direction, least_squares
from gatec.moe.streaming import Stream
from gatec.partition import activation_features, balanced_clusters
from gatec.zoo import load

WIDTH, UNITS, EXPERTS = 12, 32, 4


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, UNITS), nn.Linear(UNITS, WIDTH)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 2 * UNITS), nn.Linear(UNITS, WIDTH, bias=False)

    def forward(self, x):
        a, b = self.both(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


class Model(nn.Module):
    """Two MLPs whose hidden units are used in groups: each input is near one of a few directions."""

    def __init__(self, kind=MLP) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = kind(), kind()
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.4)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DATA = [drawn(4, 32, WIDTH, seed=seed) for seed in range(4)]
QUICK = {"steps": 60, "tokens": 512}


def split(kind=MLP, top_k: int = 2, **options) -> nn.Module:
    return gatec.convert(Model(kind), "moe", experts=EXPERTS, top_k=top_k, inputs=DATA[0], hidden=16, **options)


def off(model: nn.Module, kind=MLP) -> float:
    with torch.no_grad():
        x = drawn(256, WIDTH, seed=99)
        return float((model(x) - Model(kind)(x)).norm())


@pytest.mark.parametrize("kind", [MLP, Packed])
def test_a_fitted_router_and_a_stand_in_come_nearer_to_the_dense_model(kind):
    born, fitted = off(split(kind), kind), off(gatec.calibrate(split(kind), DATA, **QUICK), kind)
    compensated = off(gatec.calibrate(split(kind, stand_in=True), DATA, **QUICK), kind)
    assert compensated < 0.97 * fitted < 0.95 * born


@pytest.mark.parametrize("kind", [MLP, Packed])
def test_a_stand_in_adds_nothing_where_every_expert_is_on(kind):
    model = split(kind, top_k=EXPERTS, stand_in=True).double()
    for module in model.modules():
        if isinstance(module, StandIn):
            nn.init.normal_(module.table)
            nn.init.normal_(module.score.weight)
    x = drawn(8, WIDTH).double()
    torch.testing.assert_close(model(x), Model(kind).double()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [MLP, Packed])
def test_experts_outputs_are_parts_of_the_dense_layer(kind):
    model, dense = split(kind), Model(kind)
    x = drawn(8, WIDTH)
    site = fitting.sites(model)[0]
    bias = 0 if dense.first.down.bias is None else dense.first.down.bias
    assert site.name == "first"
    torch.testing.assert_close(site.outputs(x).sum(1) + bias, dense.first(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(site.sums(x, torch.ones(8, EXPERTS)) + bias, dense.first(x), rtol=1e-5, atol=1e-5)


def test_fits_are_the_same_every_time_and_leave_the_random_state_alone():
    before = torch.random.get_rng_state()
    one = gatec.calibrate(split(stand_in=True), DATA, **QUICK).state_dict()
    torch.manual_seed(7)
    other = gatec.calibrate(split(stand_in=True), DATA, **QUICK).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.random.set_rng_state(before)
    model = split().train()
    before = torch.random.get_rng_state()
    gatec.calibrate(model, iter(DATA), **QUICK)
    assert torch.equal(before, torch.random.get_rng_state()) and model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_interrupted_fit_resumes(tmp_path, monkeypatch):
    whole = gatec.calibrate(split(stand_in=True), DATA, **QUICK).state_dict()
    ran, run = [], Fit.run

    def once(fit):
        if ran:
            raise KeyboardInterrupt
        ran.append(fit.site.name)
        run(fit)

    monkeypatch.setattr(Fit, "run", once)
    with pytest.raises(KeyboardInterrupt):
        gatec.calibrate(split(stand_in=True), DATA, folder=tmp_path, **QUICK)
    assert ran == ["first"] and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(Fit, "run", lambda fit: (ran.append(fit.site.name), run(fit)))
    resumed = gatec.calibrate(split(stand_in=True), DATA, folder=tmp_path, **QUICK).state_dict()
    assert ran == ["first", "second"] and len(list(tmp_path.iterdir())) == 2
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    gatec.calibrate(split(stand_in=True), DATA[:2], folder=tmp_path, **QUICK)
    gatec.calibrate(split(stand_in=True), DATA, folder=tmp_path, **QUICK, rate=1e-3)
    assert ran == ["first", "second"] * 3


def test_a_corrupt_file_is_fitted_again(tmp_path):
    whole = gatec.calibrate(split(), DATA, folder=tmp_path, **QUICK).state_dict()
    for file in tmp_path.iterdir():
        file.write_bytes(b"half")
    again = gatec.calibrate(split(), DATA, folder=tmp_path, **QUICK).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_progress_tells_the_layers_in_order():
    told = []
    gatec.calibrate(split(), DATA[0], steps=1, progress=told.append)
    assert told == ["first", "second"]


class Block(nn.Module):
    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.mlp, self.tuples = MLP(), tuples

    def forward(self, x, /, scale):
        x += scale * self.mlp(x)
        return (x, None) if self.tuples else x


class Deep(nn.Module):
    """Blocks in a row, each with an argument of its own; `how` says what else they get."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.ran = how, 0
        self.layers = nn.ModuleList(Block(how == "tuples") for _ in range(4))
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.4)

    def forward(self, x):
        self.ran += 1
        x = x + 0
        for number, layer in enumerate(self.layers):
            scale = 1 + number + (x.mean() if self.how == "depends" else 0 * x.mean())
            out = layer(x, scale=scale)
            x = out[0] if self.how == "tuples" else out * 1 if self.how == "between" else out
        return x


@pytest.mark.parametrize("how, row", [("", True), ("tuples", True), ("depends", False), ("between", False)])
def test_blocks_in_a_row_run_twice_and_fits_are_as_if_the_model_ran_for_each(how, row, monkeypatch):
    def model():
        return gatec.convert(Deep(how), "moe", experts=EXPERTS, top_k=2, inputs=DATA[0], stand_in=True)

    runs, run = [], Row.run
    monkeypatch.setattr(Row, "run", lambda self, batch: (runs.append(self.at), run(self, batch))[1])
    found = gatec.calibrate(model(), iter(DATA), **QUICK).state_dict()
    assert [runs.count(n) for n in range(4)] == (
        [1 + 2 * len(DATA)] + [2 * len(DATA)] * 2 + [len(DATA)] if row else [0] * 4
    )
    monkeypatch.setattr(Stream, "rows_with", lambda self, module: iter(()))
    wanted = gatec.calibrate(model(), DATA, **QUICK).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_cache_that_blocks_write_to_is_empty_each_time(monkeypatch):
    ids = torch.arange(12).reshape(2, 6)
    dense, runs, run = load("transformers:llama"), [], Row.run
    monkeypatch.setattr(Row, "run", lambda self, batch: (runs.append(self.at), run(self, batch))[1])
    one, other = (gatec.convert(dense, "moe", experts=EXPERTS, top_k=2) for _ in range(2))
    found = gatec.calibrate(one, [ids, ids + 1], **QUICK).state_dict()
    assert one.config.use_cache and len(runs) == 1 + 2 * 2 + 2
    monkeypatch.setattr(Stream, "rows_with", lambda self, module: iter(()))
    wanted = gatec.calibrate(other, [ids, ids + 1], **QUICK).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_more_batches_are_kept_than_so_many_and_all_are_drawn_alike():
    alive, most, counts = set(), 0, torch.zeros(40)

    class Batch:
        def __init__(self, number: int) -> None:
            self.number = number
            alive.add(number)

        def __del__(self) -> None:
            alive.discard(self.number)

    def loader():
        nonlocal most
        for number in range(40):
            yield Batch(number)
            most = max(most, len(alive))

    for seed in range(200):
        found = [b.number for b in streaming.drawn(loader(), 10, seed)]
        assert len(found) == 10 and found == sorted(found)
        counts[found] += 1
    assert most <= 12
    assert counts.min() > 25 and counts.max() < 80
    assert [b.number for b in streaming.drawn(loader(), 40, 0)] == list(range(40))


def test_a_bar_is_shown_to_people_only(capsys):
    gatec.calibrate(split(), DATA[0], steps=1, progress=True)
    assert capsys.readouterr() == ("", "")


class Unused(Model):
    def forward(self, x, second: bool = True):
        x = x + self.first(x)
        return x + self.second(x) if second else x


def test_what_cannot_be_fitted_is_said_in_words():
    nan = copy.deepcopy(DATA[0])
    nan[0, 0, 0] = float("nan")
    unused = gatec.convert(Unused(), "moe", experts=4, top_k=2, inputs=DATA[0])
    for model, data, words in (
        (Model(), DATA, r"split layers with routers in Model\n  found none"),
        (split(), [], r"batches to fit routers on\n  found none"),
        (split(), [nan], r"finite activations of the calibration data\n  found NaN or infinity\n  where first"),
        (unused, [((DATA[0],), {"second": False})], r"its router was never called\n  where second"),
    ):
        with pytest.raises(gatec.GatecError, match=re.compile(words)):
            gatec.calibrate(model, data, steps=1)


def test_units_are_dealt_where_the_tokens_that_need_them_are():
    group = torch.arange(UNITS) % EXPERTS
    wanted = torch.randint(EXPERTS, (600, 1), generator=torch.Generator().manual_seed(0))
    hidden = drawn(600, UNITS).abs() * ((group == wanted) + 0.05)
    labels = dealt(hidden.split(100), torch.ones(3, UNITS), EXPERTS, 1)
    assert torch.equal(labels.bincount(), torch.full((EXPERTS,), UNITS // EXPERTS))
    assert all(len(labels[group == g].unique()) == 1 for g in range(EXPERTS))


def test_dealing_holds_more_than_clustering():
    size = torch.linspace(0.1, 3, UNITS)
    hidden = F.relu(drawn(800, WIDTH) @ drawn(WIDTH, UNITS, seed=1)) * size
    need = (hidden - hidden.mean(0)).square()

    def held(labels):
        return float((need @ F.one_hot(labels, EXPERTS).float()).topk(1, -1).values.sum())

    out = torch.eye(UNITS)
    labels = dealt([hidden], out, EXPERTS, 1)
    started = balanced_clusters(activation_features(sample([hidden], 0)), EXPERTS)
    assert held(labels) > 1.02 * held(started)
    assert torch.equal(labels, dealt([hidden], out, EXPERTS, 1))


def test_balanced_labels_gain_most():
    gain = torch.tensor([[5.0, 6.0, 0.0, 2.0], [4.0, 1.0, 0.0, 0.0]])
    assert balanced(gain).tolist() == [1, 0, 1, 0]


def test_a_direction_is_the_one_that_moves_the_output():
    x = drawn(400, WIDTH)
    along = F.normalize(drawn(WIDTH, seed=5), dim=0)
    out = (x @ along).unsqueeze(1) * drawn(1, 6, seed=6) + 0.01 * drawn(400, 6, seed=7) + 3
    assert abs(float(direction(x, out) @ along)) > 0.95


def test_least_squares_over_chunks():
    features, table = drawn(300, 5), drawn(5, 3, seed=1)
    found = least_squares(zip(features.split(100), (features @ table).split(100), strict=True), ridge=1e-9)
    torch.testing.assert_close(found.float(), table, rtol=1e-4, atol=1e-4)
