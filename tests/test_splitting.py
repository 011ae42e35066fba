"""How hidden units become experts: every way is exact with all of them on, the same for everyone, and says what it refuses."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.moe.splitting import METHODS, Split, labels_of, nearest, split_at

UNITS = 32


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, UNITS), nn.Linear(8, UNITS), nn.Linear(UNITS, 8)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, UNITS), nn.Linear(UNITS, 8)

    def forward(self, x):
        return self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Gated(), Plain(), Gated()])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def made(kind, seed=0):
    torch.manual_seed(seed)
    return kind().double()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(5, 8)
DATA = [drawn(40, 8, seed=1), drawn(2, 7, 8, seed=2)]
GIVEN = [(7 * n) % 4 for n in range(UNITS)]


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def routers(model):
    return {n.rpartition(".")[0]: m for n, m in model.named_modules() if n.rpartition(".")[2].endswith("router")}


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("partition", [*METHODS, GIVEN, torch.tensor(GIVEN)], ids=[*METHODS, "list", "tensor"])
@pytest.mark.parametrize("kind", [Plain, Gated])
def test_all_experts_on_are_the_dense_layer(kind, partition, shared):
    dense = made(kind)
    options = {"experts": 4, "top_k": 4 - shared, "shared": shared, "partition": partition, "calibration": DATA}
    split = gatec.convert(dense, "moe", inputs=X, **options)
    (router,) = routers(split).values()
    assert router.experts == 4 - shared
    assert sorted(router.order.tolist()) == list(range(UNITS)) and router.order.tolist() != list(range(UNITS))
    for x in (X, DATA[1]):
        assert relative(split(x), dense(x)) < 1e-12


def test_shared_experts_run_for_every_token_and_one_routed_expert_beside_them():
    dense = made(Plain)
    split = gatec.convert(dense, "moe", inputs=X, experts=4, top_k=1, shared=2, partition="random")
    up, down, (router,) = split.up, split.down, routers(split).values()
    chosen, _ = router(X)
    hidden = F.relu(up(X)).unflatten(1, (4, 8))
    on = torch.zeros(5, 4, dtype=torch.float64).scatter_(1, chosen + 2, 1)
    on[:, :2] = 1
    assert relative(split(X), down((hidden * on[:, :, None]).flatten(1))) < 1e-12
    assert relative(split(X), dense(X)) > 1e-3


def test_the_most_active_units_are_shared():
    dense = made(Plain)
    with torch.no_grad():
        dense.up.bias[3::4] += 20  # 8 of 32 units
    split = gatec.convert(
        dense, "moe", inputs=X, experts=4, top_k=1, shared=1, partition="importance", calibration=DATA
    )
    (router,) = routers(split).values()
    assert sorted(router.order[:8].tolist()) == list(range(3, UNITS, 4))


def test_units_that_are_active_together_become_an_expert():
    truth = torch.arange(UNITS) % 4
    hidden = (truth == (torch.arange(400) % 4)[:, None]) * drawn(400, UNITS).abs()
    for how in ("coactivation", "importance"):
        labels = labels_of(Split(how, 4), [drawn(UNITS, 8)], drawn(8, UNITS), lambda: [hidden], 0, "here")
        assert all(len(labels[truth == t].unique()) == 1 for t in range(4)), how


def test_without_data_the_largest_units_are_shared():
    rows, out = drawn(UNITS, 8), drawn(8, UNITS)
    rows[4:12] *= 10
    labels = labels_of(Split("weights", 4, 1), [rows], out, None, 0, "here")
    assert (labels == 0).nonzero().flatten().tolist() == list(range(4, 12))


@pytest.mark.parametrize("partition", ["weights", "importance"])
@pytest.mark.parametrize("kind, sizes", [(nn.Conv1d, (5,)), (nn.Conv2d, (3, 5)), (nn.Conv3d, (2, 3, 2))])
def test_convolutions_of_one_position(kind, sizes, partition):
    dense = made(lambda: nn.Sequential(kind(6, UNITS, 1), nn.GELU(), kind(UNITS, 4, 1, bias=False)))
    x = drawn(2, 6, *sizes)
    options = {"shared": 1, "partition": partition, "calibration": [x]}
    split = gatec.convert(dense, "moe", inputs=x, experts=4, top_k=3, **options)
    assert relative(split(x), dense(x)) < 1e-12
    assert relative(split(x[..., :-1]), dense(x[..., :-1])) < 1e-12
    back = gatec.revert(split).state_dict()
    assert all(torch.equal(v, back[n]) for n, v in dense.state_dict().items())
    few = gatec.convert(dense, "moe", inputs=x, experts=4, top_k=1)
    assert few(x).shape == dense(x).shape and relative(few(x), dense(x)) > 1e-3


@pytest.mark.parametrize(
    "other", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "groups": 2}, {"kernel_size": 1, "stride": 2}]
)
def test_other_convolutions_are_no_place(other):
    model = nn.Sequential(nn.Conv2d(6, UNITS, **other), nn.ReLU(), nn.Conv2d(UNITS, 4, 1)).double()
    assert not any(e.verdict == "put" for e in gatec.why(model, "moe", inputs=drawn(2, 6, 4, 4)))


# per layer


def test_each_layer_as_it_is_told():
    dense = made(Stack)
    split = gatec.convert(
        dense,
        "moe",
        inputs=X,
        experts=4,
        top_k=2,
        shared=1,
        partition={"blocks.0": GIVEN, r"\.2$": 16, "blocks": "random"},
    )
    found = routers(split)
    sizes = {site: router.experts + 1 for site, router in found.items()}
    assert sizes == {"blocks.0": 4, "blocks.1": 4, "blocks.2": 16}
    assert found["blocks.0"].order.tolist() == torch.tensor(GIVEN).argsort(stable=True).tolist()


def test_a_recipe_holds_the_choice_per_layer(tmp_path):
    dense = made(Stack)
    options = {"experts": 4, "top_k": 2, "shared": 1, "calibration": DATA}
    split = gatec.convert(
        dense, "moe", inputs=X, partition={"blocks.0": GIVEN, r"\.2$": 16, "blocks": "importance"}, **options
    )
    again = gatec.load(gatec.save(split, tmp_path), made(Stack, seed=1), inputs=X)
    assert torch.equal(again(X), split(X))
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in split.state_dict().items())


def test_the_nearest_number_of_experts():
    assert [nearest(32, n, 1) for n in (1, 3, 5, 6, 7, 20, 33)] == [1, 2, 4, 4, 8, 16, 32]
    assert nearest(32, 3, 3) == 4
    dense = made(Plain)
    split = gatec.convert(dense, "moe", inputs=X, experts=9, top_k=8, nearest=True)
    assert relative(split(X), dense(X)) < 1e-12
    assert "8 experts, because 9 do not divide its 32 hidden units" in str(gatec.report(split))


# the same for everyone


SCRIPT = """
import torch
from tests.test_splitting import *
for how in METHODS:
    split = gatec.convert(made(Gated), "moe", inputs=X, experts=4, top_k=1, shared=1, partition=how, calibration=DATA, seed=3)
    print(next(iter(routers(split).values())).order.tolist())
"""


def test_labels_are_the_same_in_another_process():
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(set(found)) == len(METHODS)
    for how, line in zip(METHODS, found, strict=True):
        split = gatec.convert(
            made(Gated), "moe", inputs=X, experts=4, top_k=1, shared=1, partition=how, calibration=DATA, seed=3
        )
        assert str(next(iter(routers(split).values())).order.tolist()) == line


# what is refused


class Elsewhere(nn.Module):
    """Its second MLP is for calls with a flag only."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Plain(), Plain()

    def forward(self, x, both=True):
        return self.first(x) + (self.second(x) if both else 0)


def test_data_that_never_reaches_a_layer():
    dense = made(Elsewhere)
    data = [((X,), {"both": False})]
    split = gatec.convert(dense, "moe", inputs=X, experts=4, top_k=4, calibration=data)
    assert list(routers(split)) == ["first"]
    assert "up was not called as a module while the calibration data ran" in str(gatec.report(split))
    assert relative(split(X), dense(X)) < 1e-12


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Parameter(torch.randn(UNITS, 8)), nn.Parameter(torch.randn(8, UNITS))

    def forward(self, x):
        return F.linear(F.relu(F.linear(x / 2, self.into)), self.out)


def test_data_is_gathered_at_modules_only():
    with pytest.raises(gatec.GatecError, match="computes more than one layer, so that no data can be gathered there"):
        gatec.convert(made(Bare), "moe", inputs=X, experts=4, top_k=4, calibration=DATA)


@pytest.mark.parametrize("units", [nn.Linear(8, UNITS), nn.Sequential(nn.Linear(8, UNITS))], ids=["layer", "inside"])
def test_data_is_gathered_as_the_model_was(units):
    """An earlier edit of the same module stays; this one's own layers still run as modules."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = units, nn.Linear(UNITS, 8), nn.Linear(8, UNITS), nn.Linear(UNITS, 8)

        def forward(self, x):
            x = x + self.b(F.relu(self.a(x)))
            return x + self.d(F.relu(self.c(x)))

    dense = made(Two)
    split = gatec.convert(dense, "moe", inputs=X, experts=4, top_k=4, calibration=DATA)
    assert sum(e.verdict == "put" for e in gatec.report(split).edits) == 2, str(gatec.report(split))
    assert relative(split(X), dense(X)) < 1e-12


@pytest.mark.parametrize(
    "options, words",
    [
        ({"partition": "spectral"}, r"a partition\n  found 'spectral'\n.*\n  try   weights, coactivation"),
        ({"partition": 2.5}, "found 2.5"),
        ({"partition": "importance"}, r"calibration data for the partition 'importance'\n  found none"),
        ({"partition": {"layrs": 4}}, r"a module of Stack for each key of partition\n  found none for 'layrs'"),
        ({"partition": {"(": 4}}, "regular expressions as keys"),
        ({"partition": GIVEN[1:]}, r"a whole-numbered label for each of 32 hidden units\n  found int64\[31\]\n  where blocks.1"),
        ({"partition": torch.ones(UNITS)}, r"found float32\[32\]"),
        ({"partition": [0] * UNITS}, r"8 units with each label from 0 to 3\n.*\n  where blocks.1\n  try   4 experts: experts="),
        ({"partition": {"blocks.0": 5}}, "5 experts do not divide its 32 hidden units; these do: 2, 4, 8, 16, 32"),
        ({"shared": 3}, r"1 <= top_k <= experts - shared\n  found experts=4, top_k=2, shared=3"),
        ({"shared": -1}, "shared=-1"),
        ({"calibration": []}, r"calibration data with batches\n  found none\n  where blocks.1"),
        ({"calibration": iter(DATA)}, r"where blocks.0\n  try   a list or a DataLoader"),
        ({"calibration": [X / 0]}, r"finite activations of the calibration data\n  found (nan|inf)\n  where blocks.1"),
    ],
)  # fmt: skip
def test_bad_input(options, words):
    dense = made(Stack)
    before = {n: v.clone() for n, v in dense.state_dict().items()}
    with pytest.raises(gatec.GatecError, match=words):
        gatec.convert_(
            dense,
            "moe",
            inputs=X,
            only=r"\.0$" if "these do" in words else None,
            **{"experts": 4, "top_k": 2, **options},
        )
    assert all(torch.equal(v, before[n]) for n, v in dense.state_dict().items()) and len(before) == len(
        dense.state_dict()
    )


class Repeated(nn.Module):
    def __init__(self, alias=False):
        super().__init__()
        self.mlp = Gated()
        if alias:
            self.again = self.mlp

    def forward(self, x):
        return self.mlp(self.mlp(x))


def test_a_module_that_is_called_twice_is_split_once():
    dense = made(Repeated)
    split = gatec.convert(dense, "moe", inputs=X, experts=4, top_k=4)
    assert sum(e.verdict == "put" for e in gatec.report(split).edits) == 1
    assert relative(split(X), dense(X)) < 1e-12
    with pytest.raises(gatec.GatecError, match=r"mlp.gate.weight is shared with again.gate.weight"):
        gatec.convert(made(lambda: Repeated(True)), "moe", inputs=X, experts=4, top_k=4)


def test_a_site_is_found_by_name_before_by_expression():
    model = made(Stack)
    assert split_at("blocks.1", model, {"blocks": 2, "blocks.1": 16}, 4, 0) == Split(None, 16)
    assert split_at("blocks.0", model, {"blocks": 2, "blocks.1": 16}, 4, 1) == Split(None, 2, 1)
    assert split_at("blocks.0", model, {"blocks.1": 16}, 4, 0) == Split(None, 4)


class Row(nn.Module):
    """What one layer gives is, through an activation, what the next one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Narrow(), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def test_a_layer_belongs_to_one_place():
    model, x = Row().double(), torch.randn(5, 8, dtype=torch.float64)
    moe = gatec.convert(model, "moe", experts=4, top_k=4, inputs=x)
    edits = {e.site: e for e in gatec.report(moe).edits}
    assert edits["first"].verdict == edits["second.2"].verdict == "put"
    assert "belongs to the place at" in edits["second.0"].why
    assert (moe(x) - model(x)).norm() <= 1e-12 * model(x).norm()


def test_a_packed_layer_is_not_run_whole_beside_its_experts():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.down = nn.Linear(8, 64), nn.Linear(32, 8)

        def forward(self, x):
            gate, up = self.both(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)

    model = gatec.convert(Packed(), "moe", experts=4, top_k=2, inputs=torch.randn(3, 8))
    ran = []
    model.both.register_forward_hook(lambda *_: ran.append(1))
    model(torch.randn(3, 8))
    assert not ran


def test_what_a_mixture_gives_may_be_written_to():
    dense = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    model = gatec.convert(dense, "moe", experts=4, top_k=2, inputs=torch.randn(3, 8))
    assert not model(torch.randn(2, 3, 8))._is_view()
